"""How a step is cut up so that it fits into memory: nothing of what is learnt depends on it, but
for rounding. Pure: no arrays, no files.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mlxchat.config.run import LEAST, MemoryConfig
from mlxchat.config.units import BYTES, round_size, to_bytes
from mlxchat.errors import MemoryLimitError, MlxchatError
from mlxchat.model.config import GPTConfig
from mlxchat.model.loss import chunk_size
from mlxchat.model.size import ScoresHeld, parameters, training_bytes

LARGEST_DEVICE_BATCH = 32  # nanochat's
LEAST_LOSS_ROWS = 64
MARGIN = 1 / 0.9  # over the estimate, which is within 10% of what is measured
LEAST_ROOM = 1.05  # over the least that it can be, where the least is asked for
LEAST_LIMIT = 512 * BYTES["MiB"]  # then; less than that would save what nobody misses
AGAIN = 1 / 3  # of a token's time: with checkpointing the forward pass is done twice
MICRO_BATCH = 256  # tokens in whose time gradients are summed and kernels launched
CHUNK = 16  # tokens in whose time the head's weight is read and its gradient written
CHECKPOINTING = {"auto": (False, True), "on": (True,), "off": (False,)}


class Capacity(NamedTuple):
    """What the machine has."""

    memory: int  # bytes that training may take
    value_bytes: int  # of one activation
    scores_held: ScoresHeld  # of which layers the scores of attention are held
    loss_rows: int  # positions in a chunk of the loss, where memory is plenty

    def training_bytes(
        self,
        model: GPTConfig,
        device_batch: int,
        accumulation: int,
        loss_rows: int,
        checkpoint: bool,
    ) -> dict[str, int]:
        """Bytes that training takes here, as `arithmetic.training_bytes` estimates them."""
        return training_bytes(
            model,
            device_batch,
            accumulation,
            self.value_bytes,
            self.scores_held,
            loss_rows,
            checkpoint=checkpoint,
        )


class Cut(NamedTuple):
    """A way to compute a step."""

    device_batch: int  # rows at once
    accumulation: int  # micro-batches
    loss_rows: int  # positions in a chunk of the loss, at least
    checkpoint: bool


class Depth(NamedTuple):
    """A model that might do instead of one that is too large."""

    model: GPTConfig
    rows: int  # of a step


def memory_limit(config: MemoryConfig, model: GPTConfig, rows: int, capacity: Capacity) -> int:
    """Bytes that training may take: as given, or what the machine has.

    ``least`` is the least that the model's training can be cut down to, and a little more, or
    `LEAST_LIMIT`, so that what costs much time and saves little is left.
    """
    if config.memory_limit is None:
        return capacity.memory
    if config.memory_limit != LEAST:
        return to_bytes(config.memory_limit)
    least = _peak(model, _least(config, model, rows, capacity), capacity)
    return min(capacity.memory, max(LEAST_LIMIT, int(MARGIN * LEAST_ROOM * least)))


def fit(
    config: MemoryConfig,
    model: GPTConfig,
    rows: int,
    capacity: Capacity,
    shallower: Iterable[Depth],
) -> Cut:
    """The fastest cut whose peak, with `MARGIN`, is within the memory limit.

    A given device batch, or checkpointing on or off, is kept. How fast a cut is, is presumed: a
    token's time is 1 unit; checkpointing adds `AGAIN`, a micro-batch `MICRO_BATCH`, a chunk of the
    loss `CHUNK` units. So the largest batch without checkpointing comes first; then smaller batches
    and smaller chunks; then checkpointing, before micro-batches of less than some 800 tokens.

    Args:
        rows: of a step.
        shallower: the models of smaller depths, the deepest first.

    Raises:
        MlxchatError: none fits; says what the least takes, by component, and what would fit.
    """
    limit = memory_limit(config, model, rows, capacity)
    least = _least(config, model, rows, capacity)
    if MARGIN * _peak(model, least, capacity) > limit:
        others = _alternatives(config, model, rows, capacity, limit, shallower)
        raise _too_large(config, model, least, capacity, limit, others)
    possible = sorted(_cuts(config, rows, capacity), key=lambda cut: _time(model, cut))
    return next(cut for cut in possible if MARGIN * _peak(model, cut, capacity) <= limit)


def _cuts(config: MemoryConfig, rows: int, capacity: Capacity) -> Iterator[Cut]:
    batches = [n for n in range(1, LARGEST_DEVICE_BATCH + 1) if rows % n == 0]
    chunks, chunk = [capacity.loss_rows], capacity.loss_rows // 2
    while chunk >= LEAST_LOSS_ROWS:
        chunks.append(chunk)
        chunk //= 2
    for batch in [config.device_batch_size] if config.device_batch_size else batches:
        for loss_rows in chunks:
            for checkpoint in CHECKPOINTING[config.grad_checkpoint]:
                yield Cut(batch, rows // batch, loss_rows, checkpoint)


def _least(config: MemoryConfig, model: GPTConfig, rows: int, capacity: Capacity) -> Cut:
    """The cut that takes the least: the fewest rows at once, or all of them and nothing summed."""
    cuts = list(_cuts(config, rows, capacity))
    ends = {min(cut.device_batch for cut in cuts), max(cut.device_batch for cut in cuts)}
    chunk = min(cut.loss_rows for cut in cuts)
    extreme = [cut for cut in cuts if cut.device_batch in ends and cut.loss_rows == chunk]
    return min(extreme, key=lambda cut: _peak(model, cut, capacity))


def _peak(model: GPTConfig, cut: Cut, capacity: Capacity) -> int:
    return capacity.training_bytes(model, *cut)["peak"]


def _time(model: GPTConfig, cut: Cut) -> float:
    """Of a token, in units of its forward and backward pass."""
    tokens = cut.device_batch * model.sequence_len
    chunk = min(tokens, chunk_size(tokens, model.vocab_size, cut.loss_rows))
    return 1 + AGAIN * cut.checkpoint + MICRO_BATCH / tokens + CHUNK / chunk


def _alternatives(
    config: MemoryConfig,
    model: GPTConfig,
    rows: int,
    capacity: Capacity,
    limit: int,
    shallower: Iterable[Depth],
) -> list[str]:
    """Options with which it would fit, the one that changes least first."""

    def fits(config: MemoryConfig, model: GPTConfig, rows: int) -> Cut | None:
        least = _least(config, model, rows, capacity)
        return least if MARGIN * _peak(model, least, capacity) <= limit else None

    found = []
    if config.grad_checkpoint == "off":
        relaxed = config.model_copy(update={"grad_checkpoint": "auto"})
        if fits(relaxed, model, rows):
            found.append("`grad_checkpoint=auto`")
    if config.device_batch_size:
        relaxed = config.model_copy(update={"device_batch_size": None})
        fitting = [
            cut.device_batch
            for cut in _cuts(relaxed, rows, capacity)
            if MARGIN * _peak(model, cut, capacity) <= limit
        ]
        if fitting:
            found.append(f"`device_batch_size={max(fitting)}`")
    for other in shallower:
        if fits(config, *other):
            found.append(f"`depth={other.model.n_layer}`")
            break
    return found


def _too_large(
    config: MemoryConfig,
    model: GPTConfig,
    least: Cut,
    capacity: Capacity,
    limit: int,
    others: list[str],
) -> MlxchatError:
    needed = capacity.training_bytes(model, *least)
    peak = needed.pop("peak")
    room = int(MARGIN * peak)
    whose = "this machine can spare"
    if config.memory_limit not in (None, LEAST):
        unit = "GiB" if room >= BYTES["GiB"] else "MiB"
        others = [*others, f"`memory_limit={math.ceil(10 * room / BYTES[unit]) / 10:g}{unit}`"]
        whose = f"`memory_limit={config.memory_limit}` is"
    parts = ", ".join(f"{name} {round_size(size)}" for name, size in needed.items())
    return MemoryLimitError(
        f"Training {sum(parameters(model).values()):,} parameters, {least.device_batch:,} "
        f"{'row' if least.device_batch == 1 else 'rows'} of {model.sequence_len:,} tokens at once, "
        f"takes at least {round_size(room)}, a tenth to be safe included ({parts}); "
        f"{whose} {round_size(limit)}.",
        f"Use {' or '.join(others)}." if others else "Use a smaller `max_seq_len` or `vocab_size`.",
    )
