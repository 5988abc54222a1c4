"""Quantizes a trained model in place, and measures its loss.

Scales and offsets are stored in the dtype that this machine computes in. mlx-lm takes the dtype of
its activations from them, so it computes as `mlxchat chat` does: in bfloat16 on GPUs, and in
float32 on CPUs, where MLX's quantized products are ten times as fast as in bfloat16.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Loader
from mlxchat.errors import CheckpointError, command
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Format
from mlxchat.model.quantized import quantize_layers
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Event

EVALUATION_TOKENS = 4096  # per batch, or one row if the context is longer
KINDS = {  # kinds of layers, by the prefix of their names
    "transformer.wte": "embedding",
    "transformer.h.": "blocks",
    "value_embeds.": "value embeddings",
    "lm_head": "head",
}
UNQUANTIZED = "scalars and gates"


class QuantizedPart(NamedTuple):
    """The parameters of one kind of layers that are stored in one format."""

    name: str
    stored: str  # the format, in words
    parameters: int
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight, scales and offsets included."""
        return 8 * self.bytes_after / self.parameters


def require_unquantized(source: Path) -> None:
    """Check that the model in a directory can be quantized.

    Raises:
        CheckpointError: it is already.
    """
    if layout.is_quantized(source):
        raise CheckpointError(
            f"The model in {source} is already quantized.",
            "Name the original run with `model_tag`, or talk to this one: "
            f"{command('chat', checkpoint=source)}",
        )


def quantize(model: GPT, formats: Mapping[str, Format]) -> list[QuantizedPart]:
    """Quantize the layers named in ``formats`` in place, and cast the rest to the compute dtype.

    The old weight of each layer is freed before the next layer is quantized.

    Returns:
        The parameters by kind and format, in the order of the model's layers.
    """
    before = model.named_parameters()
    counts = {name: (weight.size, weight.nbytes) for name, weight in before.items()}
    del before
    for name, format in formats.items():
        quantize_layers(model, {name: format})
        mx.eval(model.parameters())
    model.cast_matrices()
    return _parts(counts, model, formats)


def evaluate(
    saved: SavedModel,
    documents: Documents,
    tokens: int,
    clock: Clock = SYSTEM_CLOCK,
) -> Iterator[Event]:
    """Measure bits per byte on ``tokens`` validation tokens, rounded up to whole rows.

    Yields progress and, last, an `Evaluated`.

    Raises:
        DataError: the text does not fill one row of the context length.
    """
    context = saved.model.config.sequence_len
    rows = max(1, min(EVALUATION_TOKENS, tokens) // context)
    losses = mx.compile(saved.model.losses, inputs=saved.model.state)
    with Loader(
        documents.validation(), saved.tokenizer, rows, context, preparation=documents.preparation
    ) as batches:
        limit = math.ceil(tokens / (rows * context))
        yield from bits_per_byte(losses, batches, limit, saved.tokenizer, clock=clock)


def _parts(
    counts: Mapping[str, tuple[int, int]], model: GPT, formats: Mapping[str, Format]
) -> list[QuantizedPart]:
    """Group the parameters by kind and format, in the order of the model's layers.

    Args:
        counts: the size and bytes of each parameter before quantization.
        model: the quantized model.
        formats: the formats of the quantized layers.
    """
    after: Counter[str] = Counter()  # bytes of each layer: its weight, scales and offsets
    for name, array in model.named_parameters().items():
        after[_layer(name)] += array.nbytes
    parts: dict[tuple[str, str], QuantizedPart] = {}
    for name, (parameters, size) in counts.items():
        layer = _layer(name)
        kind, stored = UNQUANTIZED, "not quantized"
        if layer in formats:
            kind = next(kind for start, kind in KINDS.items() if layer.startswith(start))
            stored = str(formats[layer])
        so_far = parts.get((kind, stored), QuantizedPart(kind, stored, 0, 0, 0))
        parts[kind, stored] = so_far._replace(
            parameters=so_far.parameters + parameters,
            bytes_before=so_far.bytes_before + size,
            bytes_after=so_far.bytes_after + after[layer],
        )
    order = [*KINDS.values(), UNQUANTIZED]
    return sorted(parts.values(), key=lambda part: order.index(part.name))


def _layer(parameter: str) -> str:
    """Return the name of a parameter's layer, or its own name if it is in none."""
    return parameter.rpartition(".")[0] or parameter
