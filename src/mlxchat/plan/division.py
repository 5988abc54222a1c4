"""Divides a step into micro-batches that fit into memory.

`fit` picks the fastest division that `mlxchat.plan.memory` estimates to stay within the memory
limit. How a step is divided changes nothing that the model learns, except by rounding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from mlxchat.config.run import LEAST, MemoryConfig
from mlxchat.config.units import UNIT_BYTES, to_bytes
from mlxchat.counts import counted, round_size
from mlxchat.errors import MemoryLimitError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import chunk_size, parameters
from mlxchat.plan.memory import AdapterPlan, BatchPlan, Resources, training_bytes

LARGEST_DEVICE_BATCH = 32  # nanochat's
SMALLEST_CHUNK_ROWS = 64
MARGIN = 1 / 0.9  # over the estimate, which is within 10% of what was measured
LEAST_MARGIN = 1.05  # `memory_limit=least` allows this much over the smallest possible peak ...
LEAST_LIMIT = 512 * UNIT_BYTES["MB"]  # ... and never less than this, which every machine can spare
CHECKPOINTING = {"auto": (False, True), "on": (True,), "off": (False,)}

TIME_TOLERANCE = 1.02  # times the shortest time: the smallest micro-batch within it is chosen

# What a division costs, in units of the time that one token takes forward and backward.
RECOMPUTE_COST = 1 / 3  # with checkpointing the forward pass runs twice
CHUNK_COST = 16  # to read the head's weight and write its gradient, for each chunk of the loss


class Trainee(NamedTuple):
    """The object of training: a whole model, or an adapter on one."""

    model: GPTConfig
    adapter: AdapterPlan | None = None


class ShallowerModel(NamedTuple):
    """A smaller model to suggest instead of one that does not fit."""

    model: GPTConfig
    rows_per_step: int


def fit(
    config: MemoryConfig,
    model: GPTConfig,
    rows_per_step: int,
    resources: Resources,
    shallower: Iterable[ShallowerModel] = (),
    saved: BatchPlan | None = None,
    adapter: AdapterPlan | None = None,
) -> BatchPlan:
    """Return the division of a step into the smallest micro-batches that is about the fastest.

    It takes at most `TIME_TOLERANCE` times as long as the fastest whose peak, with `MARGIN`, is
    within the memory limit. A device batch size or checkpointing given in the settings is kept.
    Speed is presumed, not measured: checkpointing costs `RECOMPUTE_COST` of a token's time, each
    micro-batch that of the resources' ``micro_batch_tokens`` and each chunk of the loss that of
    `CHUNK_COST` tokens. So batches without checkpointing come first, then smaller batches and
    smaller chunks, then checkpointing, which is preferred to micro-batches of fewer than about 800
    tokens.

    Args:
        shallower: models of smaller depths, deepest first, to suggest when this one does not fit.
        saved: how a saved run divided its steps. It is kept, so that the run resumes bit for bit,
            as long as it agrees with the settings and its peak, without the margin, still fits.
        adapter: the adapter that alone is trained; None if the whole model is.

    Raises:
        MemoryLimitError: nothing fits; names the smallest peak by component, and what would fit.
    """
    trainee = Trainee(model, adapter)
    limit = _limit(config, trainee, rows_per_step, resources)
    if saved and _as_set(config, saved) and _peak(trainee, saved, resources) <= limit:
        chosen = saved
    else:
        least = _least(config, trainee, rows_per_step, resources)
        if MARGIN * _peak(trainee, least, resources) > limit:
            others = _alternatives(config, trainee, rows_per_step, resources, limit, shallower)
            raise _too_large(config, trainee, least, resources, limit, others)
        divisions = _divisions(config, rows_per_step, resources)
        chosen = _smallest_fast_batch(
            {batch: _time(model, batch, resources) for batch in divisions},
            lambda batch: MARGIN * _peak(trainee, batch, resources) <= limit,
        )
    return BatchPlan(
        device_batch_size=chosen.device_batch_size,
        accumulation=chosen.accumulation,
        chunk_rows=chosen.chunk_rows,
        grad_checkpoint=chosen.grad_checkpoint,
        streams=chosen.streams,
        memory_limit=limit,
        peak=_peak(trainee, chosen, resources),
    )


def _smallest_fast_batch(
    times: Mapping[BatchPlan, float], fits: Callable[[BatchPlan], bool]
) -> BatchPlan:
    """Return the smallest of the micro-batches that are about as fast as the fastest that fits."""
    fastest = next(batch for batch in sorted(times, key=lambda batch: times[batch]) if fits(batch))
    fast = [batch for batch in times if times[batch] <= TIME_TOLERANCE * times[fastest]]
    fast.sort(key=lambda batch: (batch.device_batch_size, times[batch]))
    return next(batch for batch in fast if fits(batch))


def _limit(config: MemoryConfig, trainee: Trainee, rows_per_step: int, resources: Resources) -> int:
    """Return the bytes that training may take: those in the settings, or what the machine spares.

    ``least`` stands for the smallest peak that any division of the step reaches and a little more,
    but at least `LEAST_LIMIT`: below that, much time would be spent to save little memory.
    """
    if config.memory_limit is None:
        return resources.memory
    if config.memory_limit != LEAST:
        return to_bytes(config.memory_limit)
    least = _peak(trainee, _least(config, trainee, rows_per_step, resources), resources)
    return min(resources.memory, max(LEAST_LIMIT, int(MARGIN * LEAST_MARGIN * least)))


def _as_set(config: MemoryConfig, saved: BatchPlan) -> bool:
    """Return whether the settings allow a saved division."""
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
                    streams=1 if size % resources.streams else resources.streams,
                )


def _least(
    config: MemoryConfig, trainee: Trainee, rows_per_step: int, resources: Resources
) -> BatchPlan:
    """Return the division with the smallest peak.

    It has the fewest rows in a micro-batch, or all rows in one, where no gradients are summed.
    """
    batches = list(_divisions(config, rows_per_step, resources))
    sizes = [batch.device_batch_size for batch in batches]
    ends, chunk = (min(sizes), max(sizes)), min(batch.chunk_rows for batch in batches)
    extreme = [
        batch for batch in batches if batch.device_batch_size in ends and batch.chunk_rows == chunk
    ]
    return min(extreme, key=lambda batch: _peak(trainee, batch, resources))


def _peak(trainee: Trainee, batch: BatchPlan, resources: Resources) -> int:
    return training_bytes(trainee.model, batch, resources, trainee.adapter)["peak"]


def _time(model: GPTConfig, batch: BatchPlan, resources: Resources) -> float:
    """Return the time of a token, in units of its forward and backward pass."""
    tokens = batch.device_batch_size * model.sequence_len
    chunk = min(tokens, chunk_size(tokens, model.vocab_size, batch.chunk_rows))
    recomputing = RECOMPUTE_COST * batch.grad_checkpoint
    besides = resources.micro_batch_tokens / tokens + CHUNK_COST / chunk
    return 1 + recomputing + besides


def _alternatives(
    config: MemoryConfig,
    trainee: Trainee,
    rows_per_step: int,
    resources: Resources,
    limit: int,
    shallower: Iterable[ShallowerModel],
) -> list[str]:
    """Return settings with which training would fit, the smallest change first."""

    def fits(trainee: Trainee, batch: BatchPlan) -> bool:
        return MARGIN * _peak(trainee, batch, resources) <= limit

    found = []
    if config.grad_checkpoint == "off":
        relaxed = config.model_copy(update={"grad_checkpoint": "auto"})
        if fits(trainee, _least(relaxed, trainee, rows_per_step, resources)):
            found.append("`grad_checkpoint=auto`")
    if config.device_batch_size:
        relaxed = config.model_copy(update={"device_batch_size": None})
        batches = _divisions(relaxed, rows_per_step, resources)
        if sizes := [batch.device_batch_size for batch in batches if fits(trainee, batch)]:
            found.append(f"`device_batch_size={max(sizes)}`")
    for other, rows in shallower:
        if fits(Trainee(other), _least(config, Trainee(other), rows, resources)):
            found.append(f"`depth={other.n_layer}`")
            break
    return found


def _too_large(
    config: MemoryConfig,
    trainee: Trainee,
    least: BatchPlan,
    resources: Resources,
    limit: int,
    others: list[str],
) -> MemoryLimitError:
    model, adapter = trainee
    needed = training_bytes(model, least, resources, adapter)
    room = int(MARGIN * needed.pop("peak"))
    limited_by = f"with other programs running, {resources.spared_by} can spare"
    if config.memory_limit not in (None, LEAST):
        unit = "GB" if room >= UNIT_BYTES["GB"] else "MB"
        others = [*others, f"`memory_limit={math.ceil(10 * room / UNIT_BYTES[unit]) / 10:g}{unit}`"]
        limited_by = f"`memory_limit={config.memory_limit}` is"
    parts = ", ".join(f"{name} {round_size(size)}" for name, size in needed.items())
    rows = least.device_batch_size
    return MemoryLimitError(
        f"Training {_in_words(trainee)}, "
        f"{counted(rows, 'rows')} of {model.sequence_len:,} tokens at once, needs at "
        f"least {round_size(room)}, including a 10% margin ({parts}); {limited_by} "
        f"{round_size(limit)}.",
        f"Use {' or '.join(others)}." if others else "Use a smaller `max_seq_len` or `vocab_size`.",
    )


def _in_words(trainee: Trainee) -> str:
    """Return what is trained."""
    of_model = f"{sum(parameters(trainee.model).values()):,} parameters"
    if trainee.adapter is None:
        return of_model
    return f"an adapter of {trainee.adapter.parameters:,} parameters on a model of {of_model}"
