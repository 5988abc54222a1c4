"""The memory that training takes, estimated from the shape of the model alone.

Nothing is computed or read here. The constants were measured with benchmarks/memory.py; MEMORY.md
compares the estimate with measured peaks.
"""

import math
from typing import Literal, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from mlxchat.model.config import GPTConfig
from mlxchat.model.size import QUERY_BLOCK, STACK, cache_capacity, chunk_size, parameters
from mlxchat.telemetry.events import Count

ScoresHeld = Literal["none", "windows", "all"]
"""The layers that keep attention scores for their backward pass: those without a fused kernel."""


class Resources(NamedTuple):
    """The resources of this machine, determined once when a run starts."""

    memory: int  # bytes that it can spare
    value_bytes: int  # of one activation
    scores_held: ScoresHeld
    chunk_rows: int  # positions in a chunk of the loss, the fastest where memory is plentiful
    micro_batch_tokens: int = 256  # that take as long as what each micro-batch takes besides
    streams: int = 1  # that compute parts of a micro-batch at the same time, if its rows allow it
    devices: int = 1  # that compute: as many as there are ranks, but for those that share one
    spared_by: str = "this machine"  # whose memory that is, for error messages


class AdapterPlan(BaseModel):
    """The sizes of an adapter to train, and of its base model, which is not trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: Count  # of the adapter
    frozen: Count  # bytes of the model's weights, as they are held
    layers: int = Field(ge=1)  # the last ones, through which gradients pass
    dequantizes: bool = False  # one matrix after another, of a quantized model
    dora: bool = False


class BatchPlan(BaseModel):
    """The division of an optimizer step into micro-batches, and the memory it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device_batch_size: int = Field(ge=1)  # rows in a micro-batch
    accumulation: int = Field(ge=1)  # micro-batches in a step
    # The minimum number of positions per chunk of the loss; older checkpoints call it loss_rows.
    chunk_rows: int = Field(128, ge=1, validation_alias=AliasChoices("chunk_rows", "loss_rows"))
    grad_checkpoint: bool = False  # recompute each block's activations in the backward pass
    streams: int = Field(1, ge=1)  # that a micro-batch is divided among, see `mlxchat.streams`
    memory_limit: Count = 0  # bytes that training may take; 0 in older checkpoints
    peak: Count = 0  # bytes that it is estimated to take at one time; 0 in older checkpoints

    @property
    def rows_per_step(self) -> int:
        """Rows in an optimizer step."""
        return self.device_batch_size * self.accumulation

    @property
    def division(self) -> tuple[int, int, int, bool, int]:
        """The division of a step, without the memory that it takes."""
        return (
            self.device_batch_size,
            self.accumulation,
            self.chunk_rows,
            self.grad_checkpoint,
            self.streams,
        )

    def per_rank(self, ranks: int) -> "BatchPlan":
        """Return how each of ``ranks`` divides its rows of a step: no more of them at a time.

        >>> BatchPlan(device_batch_size=8, accumulation=3).per_rank(2).division[:2]
        (6, 2)
        """
        if ranks == 1:
            return self
        rows = self.rows_per_step // ranks
        most = range(min(rows, self.device_batch_size), 0, -1)
        size = next(size for size in most if rows % size == 0)
        streams = next(each for each in range(self.streams, 0, -1) if size % each == 0)
        own = {"device_batch_size": size, "accumulation": rows // size, "streams": streams}
        return self.model_copy(update=own)


# Arrays (B, T, C) that exist at one time, counted where nothing is computed ahead.
LAYER_ARRAYS = 14  # kept by a layer for its backward pass: stream, norms, queries, keys, values ...
MLP_INPUT_ARRAYS = 4  # kept too on CPUs, see `model.cpu.relu_squared`
BLOCK_ARRAYS = 30  # all of a block's in the backward pass of its MLP
ATTENTION_ARRAYS = 10  # in that of its attention, beside the scores and their gradients (H, T, T)
MIXED_ARRAYS, MIXED_FLOATS = 2, 1.5  # modern, in each layer: streams mixed, value embeddings
STREAM_ARRAYS, STREAM_FLOATS = 6, 4  # modern, once: embeddings, smear and backout
END_ARRAYS = 3  # after the last block: the stream, its norm and the gradient of that

CPU_LOGITS = 6  # float32 arrays of a chunk's logits on CPUs; on GPUs one, and one of activations
STACK_ARRAYS = 4  # of the matrices that Muon orthogonalises together
DRAWN_LOGITS = 6  # float32 arrays of an answer's next logits, which are sorted and drawn from
DORA_BYTES = 12  # of each number of a matrix whose rows are measured: it, its change and their sum
COMPUTED_AHEAD = 0.05  # of all: what follows is started before memory is freed


def training_bytes(
    model: GPTConfig,
    batch: BatchPlan,
    resources: Resources,
    adapter: AdapterPlan | None = None,
) -> dict[str, int]:
    """Estimate the bytes that training takes, by component, and their ``peak`` at one time.

    ``parameters`` and ``optimizer`` exist throughout, and so do ``gradients``, except in a step's
    first micro-batch, where they appear from the last block to the first. In turn,

    - the loss takes ``logits``, in later micro-batches ``accumulation`` (the head's gradient before
      it is added to the sum), and of ``activations`` those that the blocks keep;
    - the last block's backward pass takes ``activations``: gradients and casts of its matrices too;
    - the optimizer takes ``update``.

    Where only an adapter is trained, ``parameters`` are the adapter's, and those of the model are
    ``frozen``: they have neither gradients nor an optimizer's state.
    """
    if adapter is not None:
        return _adapter_bytes(model, batch, resources, adapter)
    value_bytes, size, checkpoint = (
        resources.value_bytes,
        batch.device_batch_size,
        batch.grad_checkpoint,
    )
    counts = parameters(model)
    weights, head, matrices = (
        4 * n for n in (sum(counts.values()), counts["lm_head"], counts["matrices"])
    )
    optimizer = 2 * weights - matrices  # AdamW: two numbers for each parameter; Muon: one
    if model.arch == "modern":
        optimizer += 4 * model.n_layer * 12 * model.n_embd  # NorMuon: one more a row or column

    casts = counts["matrices"] * value_bytes if value_bytes < 4 else 0
    block = counts["matrices"] * value_bytes // model.n_layer
    if checkpoint:
        block, casts = block + casts // model.n_layer, 0
    ends = END_ARRAYS * _array_bytes(model, value_bytes)
    kept = size * sum(_kept_bytes(model, resources, checkpoint), ends) + casts
    activations = casts + block + size * activation_bytes(model, resources, checkpoint=checkpoint)
    streams = batch.streams  # each has logits and gradients of its own, which are summed at the end
    positions = size * model.sequence_len // streams
    logits = streams * _logits_bytes(model, positions, value_bytes, batch.chunk_rows)
    update = max(head, STACK_ARRAYS * value_bytes * _largest_stack(model, value_bytes))

    heads = streams * head
    first = max(heads + max(kept + logits, activations), streams * (weights + block))
    later = (streams - 1) * head + weights + max(head + kept + logits, activations)
    working = max(first, weights + update, later if batch.accumulation > 1 else 0)
    peak = round((1 + COMPUTED_AHEAD) * (weights + optimizer + working))
    return {
        "parameters": weights,
        "gradients": weights,
        "optimizer": optimizer,
        **({"accumulation": head} if batch.accumulation > 1 else {}),
        "activations": activations,
        "logits": logits,
        "update": update,
        "peak": peak,
    }


def _adapter_bytes(
    model: GPTConfig, batch: BatchPlan, resources: Resources, adapter: AdapterPlan
) -> dict[str, int]:
    """Estimate what training an adapter takes, as `training_bytes` does."""
    value_bytes, size, streams = resources.value_bytes, batch.device_batch_size, batch.streams
    own = 4 * adapter.parameters
    kept = _kept_bytes(model, resources, batch.grad_checkpoint)[-adapter.layers :]
    ends = END_ARRAYS * _array_bytes(model, value_bytes)
    last = activation_bytes(model, resources, checkpoint=batch.grad_checkpoint)
    below = sum(_kept_bytes(model, resources, batch.grad_checkpoint)[: -adapter.layers])
    largest = 4 * model.n_embd**2  # of a block's matrices, in numbers
    matrices = largest * (value_bytes * adapter.dequantizes + DORA_BYTES * adapter.dora)
    activations = matrices + size * (last - below)
    positions = size * model.sequence_len // streams
    logits = streams * _logits_bytes(model, positions, value_bytes, batch.chunk_rows, adapter)
    working = streams * own + max(size * sum(kept, ends) + logits, activations)
    if batch.accumulation > 1:
        working += own
    update = 2 * own
    peak = round((1 + COMPUTED_AHEAD) * (adapter.frozen + 3 * own + max(working, own + update)))
    return {
        "frozen": adapter.frozen,
        "parameters": own,
        "gradients": own,
        "optimizer": 2 * own,
        "activations": activations,
        "logits": logits,
        "update": update,
        "peak": peak,
    }


def activation_bytes(model: GPTConfig, resources: Resources, *, checkpoint: bool = False) -> int:
    """Estimate the most that one row's activations take, when the last block goes backward.

    Args:
        checkpoint: a block's activations are recomputed for its backward pass.
    """
    value_bytes = resources.value_bytes
    kept = _kept_bytes(model, resources, checkpoint)
    if not checkpoint:
        kept.pop()  # counted with the rest of the last block
    block = BLOCK_ARRAYS * _array_bytes(model, value_bytes)
    if scores := max(_scores(model, resources.scores_held)) * model.n_head * value_bytes:
        attention = ATTENTION_ARRAYS * _array_bytes(model, value_bytes)
        gradients = model.sequence_len**2 * model.n_head * value_bytes
        block = scores + max(block, attention + gradients)
    if model.traits.lambdas:
        arrays, floats = MIXED_ARRAYS + STREAM_ARRAYS, MIXED_FLOATS + STREAM_FLOATS
        block += _mixed_bytes(model, value_bytes, arrays, floats)
    return sum(kept) + block


def drawing_bytes(
    model: GPTConfig, resources: Resources, adapter: AdapterPlan | None = None
) -> tuple[int, int]:
    """Estimate the bytes that drawing answers takes between two steps of training.

    Returns:
        What weights, their copy for decoding and the optimizer's state take; and what each answer
        takes that is drawn at a time, if it is as long as a row.
    """
    counts = parameters(model)
    weights = 4 * sum(counts.values())
    copy = weights if resources.value_bytes < 4 else 0
    trained = 3 * weights - 4 * counts["matrices"]  # with the optimizer's state
    if adapter is not None:
        trained = adapter.frozen + 3 * 4 * adapter.parameters
    position = 2 * model.n_layer * model.kv_dim * resources.value_bytes
    # While buffers grow, or lose the answers that have ended, half of them exist twice.
    cache = 3 * position * cache_capacity(model.sequence_len) // 2
    logits = DRAWN_LOGITS * 4 * model.vocab_size
    return trained + copy, cache + logits


def _kept_bytes(model: GPTConfig, resources: Resources, checkpoint: bool) -> list[int]:
    """Return what each block keeps of one row from its forward to its backward pass."""
    value_bytes = resources.value_bytes
    array = _array_bytes(model, value_bytes)
    if checkpoint:
        return [array] * model.n_layer
    layer = (LAYER_ARRAYS + MLP_INPUT_ARRAYS * (resources.scores_held == "all")) * array
    if model.traits.lambdas:
        layer += _mixed_bytes(model, value_bytes, MIXED_ARRAYS, MIXED_FLOATS)
    scores = _scores(model, resources.scores_held)
    return [layer + each * model.n_head * value_bytes for each in scores]


def _array_bytes(model: GPTConfig, value_bytes: int) -> int:
    """Return the size of one row's activations, (T, C)."""
    return model.sequence_len * model.n_embd * value_bytes


def _mixed_bytes(model: GPTConfig, value_bytes: int, arrays: float, floats: float) -> int:
    """Return the bytes of ``arrays`` (T, C) in the compute dtype and ``floats`` in float32.

    The latter count only if the compute dtype is another.
    """
    count = arrays + (floats * 4 / value_bytes if value_bytes < 4 else 0)
    return round(count * _array_bytes(model, value_bytes))


def _scores(model: GPTConfig, scores_held: ScoresHeld) -> list[int]:
    """Return how many of one head's scores each layer keeps."""
    T = model.sequence_len
    blocks = [(first, min(first + QUERY_BLOCK, T)) for first in range(0, T, QUERY_BLOCK)]

    def in_blocks(window: int) -> int:
        return sum((last - first) * (last - max(0, first - window)) for first, last in blocks)

    fused = {"none": 0, "windows": T - 1, "all": math.inf}[scores_held]  # windows from here on
    return [0 if window >= fused else in_blocks(window) for window in model.windows]


def _largest_stack(model: GPTConfig, value_bytes: int) -> int:
    """Return the size of the largest stack of matrices that Muon orthogonalises, in numbers."""
    square, mlp = model.n_embd**2, 4 * model.n_embd**2
    return max(
        min(max(STACK // (value_bytes * size), 1), count * model.n_layer) * size
        for size, count in ((square, 4), (mlp, 1))
    )


def _logits_bytes(
    model: GPTConfig,
    positions: int,
    value_bytes: int,
    least_rows: int,
    adapter: AdapterPlan | None = None,
) -> int:
    """Return the bytes of a chunk's logits, their gradients and products with the head's weight.

    A frozen head has no gradient, and is in the compute dtype already unless it is dequantized.
    """
    vocabulary = model.padded_vocab_size
    chunk = vocabulary * min(positions, chunk_size(positions, model.vocab_size, least_rows))
    product = vocabulary * model.n_embd * value_bytes  # a chunk's gradient of the head
    if adapter is not None:
        logits = CPU_LOGITS * 4 if value_bytes == 4 else 4 + value_bytes
        return product * adapter.dequantizes + logits * chunk
    if value_bytes == 4:
        return max(CPU_LOGITS * 4 * chunk, product + 2 * 4 * chunk)
    cast = vocabulary * model.n_embd * value_bytes
    return cast + max((4 + value_bytes) * chunk, product + value_bytes * chunk)
