"""A trained model in fewer bits: made in place, measured, and saved as a checkpoint of its own.

Scales and offsets are stored in the dtype that this machine computes in. mlx-lm takes its
activations' dtype from them: it computes as `chat` does, on GPUs in bfloat16, and on CPUs in
float32, where MLX's quantized products are ten times as fast as in bfloat16.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mlxchat.checkpoint import history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.data.documents import Documents
from mlxchat.data.loader import Loader
from mlxchat.errors import CheckpointError, command
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import Format, Quantization
from mlxchat.model.quantized import quantize_layers
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Event

AT_ONCE = 4096  # tokens that are evaluated together, where the context is no longer
PARTS = {  # of a model, by how the names of its layers begin
    "transformer.wte": "embedding",
    "transformer.h.": "blocks",
    "value_embeds.": "value embeddings",
    "lm_head": "head",
}
OTHERS = "scalars and gates"


class Part(NamedTuple):
    """Parameters of one kind that are stored in one way."""

    name: str
    stored: str  # in words
    parameters: int
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        """Scales and offsets included."""
        return 8 * self.bytes_after / self.parameters


def destination(runs: Path, source: Path, quantization: Quantization) -> tuple[Path, int]:
    """The run's folder, and the step, that the quantized copy of a model directory is saved as.

    A saved step keeps its number; a directory from elsewhere becomes step 0 of a run of its name.

    Raises:
        MlxchatError: the model is quantized already, or there is such a copy.
    """
    if layout.is_quantized(source):
        raise CheckpointError(
            f"The model in {source} is quantized already.",
            "Name the run that it was made of with `model_tag`, or talk to it: mlxchat chat",
        )
    tag, step = history.model_name(source)
    run = runs / f"{tag}-{quantization.name}"
    if store.directory(run, step).exists():
        raise CheckpointError(
            f"There is one already: {store.directory(run, step)}.",
            f"Talk to it: {command('chat', model_tag=run.name)}; or delete it to make it anew.",
        )
    return run, step


def quantize(model: GPT, formats: Mapping[str, Format]) -> list[Part]:
    """Quantize these layers in place, one after another; the rest is cast to the compute dtype.

    Of every layer the old weight is let go before the next one is quantized.
    """
    before = model.named_parameters()
    counts = {name: (weight.size, weight.nbytes) for name, weight in before.items()}
    del before
    for name, format in formats.items():
        quantize_layers(model, {name: format})
        mx.eval(model.parameters())
    model.cast_matrices()
    return _parts(counts, model, formats)


def save(run: Path, step: int, saved: SavedModel, past: History) -> Path:
    """Save the model as a step of a run; there is no optimizer's state to it.

    Args:
        run, step: as `destination` has them.
        past: how the model came to be that was quantized.

    Raises:
        MlxchatError: the disk is full or cannot be written, or another process writes there.
    """

    def write(folder: Path) -> None:
        layout.write_model(folder, saved.model, saved.tokenizer, saved.conversational)
        past.write(folder)

    with store.locked(run):
        return store.save(run, step, write)


def evaluate(
    saved: SavedModel,
    documents: Documents,
    tokens: int,
    clock: Callable[[], float] = time.time,
) -> Iterator[Event]:
    """Bits per byte on so many validation tokens, rounded up to whole rows of the context length.

    Raises:
        MlxchatError: the text does not fill one row.
    """
    context = saved.model.config.sequence_len
    rows = max(1, min(AT_ONCE, tokens) // context)
    losses = mx.compile(saved.model.losses, inputs=saved.model.state)
    answers_only = documents.conversational
    with Loader(
        documents.validation(), saved.tokenizer, rows, context, answers_only=answers_only
    ) as batches:
        limit = math.ceil(tokens / (rows * context))
        yield from bits_per_byte(losses, batches, limit, saved.tokenizer, clock=clock)


def _parts(
    counts: Mapping[str, tuple[int, int]], model: GPT, formats: Mapping[str, Format]
) -> list[Part]:
    """What of the model is stored in which way, in the order of its layers.

    Args:
        counts: number and bytes of each parameter before.
        model: as it is now.
        formats: of the layers that are quantized.
    """
    after: Counter[str] = Counter()  # bytes of a layer: its weight, scales and offsets
    for name, array in model.named_parameters().items():
        after[_layer(name)] += array.nbytes
    parts: dict[tuple[str, str], Part] = {}
    for name, (parameters, size) in counts.items():
        layer = _layer(name)
        kind, stored = OTHERS, "not quantized"
        if layer in formats:
            kind = next(kind for start, kind in PARTS.items() if layer.startswith(start))
            stored = str(formats[layer])
        so_far = parts.get((kind, stored), Part(kind, stored, 0, 0, 0))
        parts[kind, stored] = so_far._replace(
            parameters=so_far.parameters + parameters,
            bytes_before=so_far.bytes_before + size,
            bytes_after=so_far.bytes_after + after[layer],
        )
    order = [*PARTS.values(), OTHERS]
    return sorted(parts.values(), key=lambda part: order.index(part.name))


def _layer(parameter: str) -> str:
    """The name of the layer that a parameter is of, or its own where it stands alone."""
    return parameter.rpartition(".")[0] or parameter
