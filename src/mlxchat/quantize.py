"""Quantizes a trained model in place, measures its loss, and saves it as its own checkpoint.

Scales and offsets are stored in the dtype that this machine computes in. mlx-lm takes the dtype of
its activations from them, so it computes as `mlxchat chat` does: in bfloat16 on GPUs, and in
float32 on CPUs, where MLX's quantized products are ten times as fast as in bfloat16.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mlxchat.checkpoint import history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.run import require_name
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Loader
from mlxchat.errors import CheckpointError, command
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Format, Quantization
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


def destination(runs: Path, source: Path, quantization: Quantization) -> tuple[Path, int]:
    """Return the run folder and the step under which to save the quantized copy of a model.

    A saved step keeps its number; a directory from elsewhere becomes step 0 of a run of its name.

    Raises:
        CheckpointError: the model is already quantized, or such a copy exists.
        ConfigError: it is in a folder that no run can be named after.
    """
    if layout.is_quantized(source):
        raise CheckpointError(
            f"The model in {source} is already quantized.",
            f"Name the original run with `model_tag`, or talk to this one: {command('chat')}",
        )
    tag, step = history.tag_and_step(source)
    remedy = f"Rename {source}, or import it under a name with `model_tag`."
    run = runs / require_name(f"{tag}-{quantization.name}", remedy)
    if store.directory(run, step).exists():
        raise CheckpointError(
            f"There is already a quantized copy: {store.directory(run, step)}.",
            "Delete that folder to replace it, or talk to it: "
            f"{command('chat', model_tag=run.name)}",
        )
    return run, step


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


def save_quantized(run: Path, step: int, saved: SavedModel, past: History) -> Path:
    """Save a quantized model as a step of a run, without an optimizer state.

    Args:
        run, step: as `destination` returns them; the caller has the run locked.
        past: the history of the original model.

    Raises:
        CheckpointError: that step has been saved meanwhile.
        DiskError: the disk is full or not writable.
    """

    def write(folder: Path) -> None:
        layout.write_model(folder, saved.model, saved.tokenizer, saved.conversational)
        past.write(folder)

    return store.save(run, step, write)


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
