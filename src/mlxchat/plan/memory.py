"""The memory that training takes, and how a step is divided so that it fits.

`training_bytes` estimates, from the shape of the model alone, what a step holds; `fit` picks the
fastest division into micro-batches that stays within the memory limit. How a step is divided
changes nothing that the model learns, except by rounding. Nothing is computed or read here.

The constants of the estimate were measured with benchmarks/memory.py; MEMORY.md compares the two.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from mlxchat.config.run import LEAST, MemoryConfig
from mlxchat.config.units import UNIT_BYTES, round_size, to_bytes
from mlxchat.errors import MemoryLimitError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import QUERY_BLOCK, STACK, chunk_size, parameters
from mlxchat.telemetry.events import Count

ScoresHeld = Literal["none", "windows", "all"]
"""The layers that keep attention scores for their backward pass: those without a fused kernel."""


class Resources(NamedTuple):
    """The means of this machine; determined once, when a run starts."""

    memory: int  # bytes that it can spare
    value_bytes: int  # of one activation
    scores_held: ScoresHeld
    chunk_rows: int  # positions in a chunk of the loss, the fastest where memory is plentiful
    micro_batch_tokens: int = 256  # that take as long as what each micro-batch takes besides


class BatchPlan(BaseModel):
    """How an optimizer step is divided, and the memory that this takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device_batch_size: int = Field(ge=1)  # rows in a micro-batch
    accumulation: int = Field(ge=1)  # micro-batches in a step
    # The minimum number of positions per chunk of the loss; older checkpoints call it loss_rows.
    chunk_rows: int = Field(128, ge=1, validation_alias=AliasChoices("chunk_rows", "loss_rows"))
    grad_checkpoint: bool = False  # recompute each block's activations in the backward pass
    memory_limit: Count = 0  # bytes that training may take; 0 in older checkpoints
    peak: Count = 0  # bytes that it is estimated to take at one time; 0 in older checkpoints

    @property
    def division(self) -> tuple[int, int, int, bool]:
        """How a step is divided, without the memory that this takes."""
        return self.device_batch_size, self.accumulation, self.chunk_rows, self.grad_checkpoint


# ==== Choosing how to divide a step =======================================================
LARGEST_DEVICE_BATCH = 32  # nanochat's
SMALLEST_CHUNK_ROWS = 64
MARGIN = 1 / 0.9  # over the estimate, which is within 10% of what was measured
LEAST_MARGIN = 1.05  # `memory_limit=least` allows this much over the smallest possible peak ...
LEAST_LIMIT = 512 * UNIT_BYTES["MiB"]  # ... and never less than this, which every machine can spare
CHECKPOINTING = {"auto": (False, True), "on": (True,), "off": (False,)}

NEARLY = 1.02  # of the shortest time: the smallest micro-batch within it is chosen

# What a division costs, in units of the time that one token takes forward and backward.
RECOMPUTING = 1 / 3  # with checkpointing the forward pass runs twice
CHUNK_COST = 16  # to read the head's weight and write its gradient, for each chunk of the loss


class ShallowerModel(NamedTuple):
    """A smaller model to suggest in place of one that does not fit."""

    model: GPTConfig
    rows_per_step: int


def fit(
    config: MemoryConfig,
    model: GPTConfig,
    rows_per_step: int,
    resources: Resources,
    shallower: Iterable[ShallowerModel] = (),
    saved: BatchPlan | None = None,
) -> BatchPlan:
    """Return the division of a step into the smallest micro-batches that is about the fastest.

    That is `NEARLY` as fast as the fastest whose peak, with `MARGIN`, is within the memory limit.
    A device batch size or checkpointing given in the settings is kept. Speed is presumed, not
    measured: checkpointing costs `RECOMPUTING` of a token's time, each micro-batch that of the
    resources' ``micro_batch_tokens`` and each chunk of the loss that of `CHUNK_COST` tokens. So
    batches without checkpointing come first, then smaller batches and smaller chunks, then
    checkpointing, which is preferred to micro-batches of fewer than about 800 tokens.

    Args:
        shallower: models of smaller depths, deepest first, to suggest when this one does not fit.
        saved: how a saved run divided its steps. It is kept, so that the run resumes bit for bit,
            as long as it agrees with the settings and its peak, without the margin, still fits.

    Raises:
        MemoryLimitError: nothing fits; names the smallest peak by component, and what would fit.
    """
    limit = _limit(config, model, rows_per_step, resources)
    if saved and _as_set(config, saved) and _peak(model, saved, resources) <= limit:
        chosen = saved
    else:
        least = _least(config, model, rows_per_step, resources)
        if MARGIN * _peak(model, least, resources) > limit:
            others = _alternatives(config, model, rows_per_step, resources, limit, shallower)
            raise _too_large(config, model, least, resources, limit, others)
        divisions = _divisions(config, rows_per_step, resources)
        chosen = _smallest_of_the_fast(
            {batch: _time(model, batch, resources) for batch in divisions},
            lambda batch: MARGIN * _peak(model, batch, resources) <= limit,
        )
    return BatchPlan(
        device_batch_size=chosen.device_batch_size,
        accumulation=chosen.accumulation,
        chunk_rows=chosen.chunk_rows,
        grad_checkpoint=chosen.grad_checkpoint,
        memory_limit=limit,
        peak=_peak(model, chosen, resources),
    )


def _smallest_of_the_fast(
    times: Mapping[BatchPlan, float], fits: Callable[[BatchPlan], bool]
) -> BatchPlan:
    """Return the smallest micro-batch that is `NEARLY` as fast as the fastest that fits."""
    fastest = next(batch for batch in sorted(times, key=lambda batch: times[batch]) if fits(batch))
    fast = [batch for batch in times if times[batch] <= NEARLY * times[fastest]]
    fast.sort(key=lambda batch: (batch.device_batch_size, times[batch]))
    return next(batch for batch in fast if fits(batch))


def _limit(config: MemoryConfig, model: GPTConfig, rows_per_step: int, resources: Resources) -> int:
    """Return the bytes that training may take: those in the settings, or what the machine spares.

    ``least`` stands for the smallest peak that any division of the step reaches and a little more,
    but at least `LEAST_LIMIT`: below that, much time would be spent to save little memory.
    """
    if config.memory_limit is None:
        return resources.memory
    if config.memory_limit != LEAST:
        return to_bytes(config.memory_limit)
    least = _peak(model, _least(config, model, rows_per_step, resources), resources)
    return min(resources.memory, max(LEAST_LIMIT, int(MARGIN * LEAST_MARGIN * least)))


def _as_set(config: MemoryConfig, saved: BatchPlan) -> bool:
    """Whether a saved division is one that the settings allow."""
    return saved.grad_checkpoint in CHECKPOINTING[
        config.grad_checkpoint
    ] and config.device_batch_size in (None, saved.device_batch_size)


def _divisions(
    config: MemoryConfig, rows_per_step: int, resources: Resources
) -> Iterator[BatchPlan]:
    """Yield every way to divide a step that the settings allow."""
    sizes = [n for n in range(1, LARGEST_DEVICE_BATCH + 1) if rows_per_step % n == 0]
    chunks, chunk = [resources.chunk_rows], resources.chunk_rows // 2
    while chunk >= SMALLEST_CHUNK_ROWS:
        chunks.append(chunk)
        chunk //= 2
    for size in [config.device_batch_size] if config.device_batch_size else sizes:
        for rows in chunks:
            for checkpoint in CHECKPOINTING[config.grad_checkpoint]:
                yield BatchPlan(
                    device_batch_size=size,
                    accumulation=rows_per_step // size,
                    chunk_rows=rows,
                    grad_checkpoint=checkpoint,
                )


def _least(
    config: MemoryConfig, model: GPTConfig, rows_per_step: int, resources: Resources
) -> BatchPlan:
    """Return the division of the smallest peak: the fewest rows in a micro-batch, or all rows in
    one, where no gradients are summed.
    """
    batches = list(_divisions(config, rows_per_step, resources))
    sizes = [batch.device_batch_size for batch in batches]
    ends, chunk = (min(sizes), max(sizes)), min(batch.chunk_rows for batch in batches)
    extreme = [
        batch for batch in batches if batch.device_batch_size in ends and batch.chunk_rows == chunk
    ]
    return min(extreme, key=lambda batch: _peak(model, batch, resources))


def _peak(model: GPTConfig, batch: BatchPlan, resources: Resources) -> int:
    return training_bytes(model, batch, resources)["peak"]


def _time(model: GPTConfig, batch: BatchPlan, resources: Resources) -> float:
    """Return the time of a token, in units of its forward and backward pass."""
    tokens = batch.device_batch_size * model.sequence_len
    chunk = min(tokens, chunk_size(tokens, model.vocab_size, batch.chunk_rows))
    recomputing = RECOMPUTING * batch.grad_checkpoint
    besides = resources.micro_batch_tokens / tokens + CHUNK_COST / chunk
    return 1 + recomputing + besides


def _alternatives(
    config: MemoryConfig,
    model: GPTConfig,
    rows_per_step: int,
    resources: Resources,
    limit: int,
    shallower: Iterable[ShallowerModel],
) -> list[str]:
    """Return settings with which training would fit, the smallest change first."""

    def fits(model: GPTConfig, batch: BatchPlan) -> bool:
        return MARGIN * _peak(model, batch, resources) <= limit

    found = []
    if config.grad_checkpoint == "off":
        relaxed = config.model_copy(update={"grad_checkpoint": "auto"})
        if fits(model, _least(relaxed, model, rows_per_step, resources)):
            found.append("`grad_checkpoint=auto`")
    if config.device_batch_size:
        relaxed = config.model_copy(update={"device_batch_size": None})
        batches = _divisions(relaxed, rows_per_step, resources)
        if sizes := [batch.device_batch_size for batch in batches if fits(model, batch)]:
            found.append(f"`device_batch_size={max(sizes)}`")
    for other, rows in shallower:
        if fits(other, _least(config, other, rows, resources)):
            found.append(f"`depth={other.n_layer}`")
            break
    return found


def _too_large(
    config: MemoryConfig,
    model: GPTConfig,
    least: BatchPlan,
    resources: Resources,
    limit: int,
    others: list[str],
) -> MemoryLimitError:
    needed = training_bytes(model, least, resources)
    room = int(MARGIN * needed.pop("peak"))
    limited_by = "beside other programs this machine can spare"
    if config.memory_limit not in (None, LEAST):
        unit = "GiB" if room >= UNIT_BYTES["GiB"] else "MiB"
        others = [*others, f"`memory_limit={math.ceil(10 * room / UNIT_BYTES[unit]) / 10:g}{unit}`"]
        limited_by = f"`memory_limit={config.memory_limit}` is"
    parts = ", ".join(f"{name} {round_size(size)}" for name, size in needed.items())
    rows = least.device_batch_size
    return MemoryLimitError(
        f"Training {sum(parameters(model).values()):,} parameters, {rows:,} "
        f"{'row' if rows == 1 else 'rows'} of {model.sequence_len:,} tokens at once, needs at "
        f"least {round_size(room)}, including a 10% margin ({parts}); {limited_by} "
        f"{round_size(limit)}.",
        f"Use {' or '.join(others)}." if others else "Use a smaller `max_seq_len` or `vocab_size`.",
    )


# ==== The estimate ===============================================================================

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
COMPUTED_AHEAD = 0.05  # of all: what follows is started before memory is freed


def training_bytes(model: GPTConfig, batch: BatchPlan, resources: Resources) -> dict[str, int]:
    """Estimate the bytes that training takes, by component, and their ``peak`` at one time.

    ``parameters`` and ``optimizer`` exist throughout, and so do ``gradients``, except in a step's
    first micro-batch, where they appear from the last block to the first. In turn,

    - the loss takes ``logits``, in later micro-batches ``accumulation`` (the head's gradient before
      it is added to the sum), and of ``activations`` those that the blocks keep;
    - the last block's backward pass takes ``activations``: gradients and casts of its matrices too;
    - the optimizer takes ``update``.
    """
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
    logits = _logits_bytes(model, size * model.sequence_len, value_bytes, batch.chunk_rows)
    update = max(head, STACK_ARRAYS * value_bytes * _largest_stack(model, value_bytes))

    first = max(head + max(kept + logits, activations), weights + block)
    later = weights + max(head + kept + logits, activations)
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
    """Return the size of arrays (T, C) in the compute dtype, and of some in float32 if that is
    another.
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


def _logits_bytes(model: GPTConfig, positions: int, value_bytes: int, least_rows: int) -> int:
    """Return the size of a chunk's logits, of what is computed from them, and of the products with
    the head's weight.
    """
    vocabulary = model.padded_vocab_size
    chunk = vocabulary * min(positions, chunk_size(positions, model.vocab_size, least_rows))
    product = vocabulary * model.n_embd * value_bytes  # a chunk's gradient of the head
    if value_bytes == 4:
        return max(CPU_LOGITS * 4 * chunk, product + 2 * 4 * chunk)
    cast = vocabulary * model.n_embd * value_bytes
    return cast + max((4 + value_bytes) * chunk, product + value_bytes * chunk)
