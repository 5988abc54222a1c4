"""Batches CORE's examples by similar length, within limits on tokens and memory.

The common beginning of an example's rows is read only once, if that saves enough.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mlxchat.config.units import round_size, to_bytes
from mlxchat.errors import MemoryLimitError
from mlxchat.evaluate.answers import MAX_BATCH_TOKENS
from mlxchat.evaluate.core_prompts import CoreExample, CoreRow
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import parameters
from mlxchat.runtime import machine, mx, spare_memory

SLACK = 16  # tokens of a prefix that may be read again, to read prefixes of similar length together
WORTHWHILE = 0.95  # of an example's work: a prefix is read by itself if no more is left to do

# Arrays that exist at one time, measured on a CPU where nothing is computed ahead.
ACTIVATIONS = 13  # (B, T, C)
FLOAT_ARRAYS = 2  # more of them in float32, if the compute dtype is another
SCORES = 4  # (B, H, T, S), where attention has no fused kernel
LOGIT_ARRAYS = 6  # (N, V) in float32
MOST_LOGITS = 2**24  # at a time
LOGITS_SHARE = 0.25  # of the memory is for logits, the rest for the network
PEAK_SHARE = 0.8  # of the limit is in use at one time, the rest kept for reuse


class CoreReading(NamedTuple):
    """An example, its distinct rows, and how many of their common first tokens are read once."""

    example: CoreExample
    rows: tuple[CoreRow, ...]
    shared: int

    @property
    def tokens(self) -> int:
        """The tokens to read."""
        return self.shared + sum(len(row.ids) - self.shared for row in self.rows)

    @property
    def longest(self) -> int:
        """The tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)


def reading(example: CoreExample, n_layer: int) -> CoreReading:
    """Return how to read an example with so many layers, or 0 to share nothing."""
    rows = tuple(dict.fromkeys(example.rows))
    whole = CoreReading(example, rows, 0)
    if not n_layer:
        return whole
    # The last token in front of those that count predicts the first of them: a row reads it.
    most = min(example.prefix, *(row.start for row in rows)) - 1
    shared = whole._replace(shared=max(0, most))
    work = shared.tokens - shared.shared / n_layer  # the last layer of a prefix costs little
    return shared if work <= WORTHWHILE * whole.tokens else whole


class BatchLimit(NamedTuple):
    """The maximum size of a batch.

    Attributes:
        tokens: the number of tokens, including padding.
        memory: bytes in addition to the weights; None for no limit.
    """

    tokens: int = MAX_BATCH_TOKENS
    memory: int | None = None

    def places(self, vocab_size: int) -> int:
        """Return at how many positions logits are computed at a time."""
        most = MOST_LOGITS
        if self.memory is not None:
            most = min(most, int(LOGITS_SHARE * self.memory) // (4 * LOGIT_ARRAYS))
        return max(1, most // vocab_size)

    def allows(self, model: GPT, group: Sequence[CoreReading]) -> bool:
        """Return whether examples may be computed together."""
        shared, rows = group[0].shared, sum(len(each.rows) for each in group)
        own = max(each.longest for each in group) - shared
        if len(group) * shared + rows * own > self.tokens:
            return False
        if self.memory is None:
            return True
        taken = network_bytes(model.config, model.dtype.size, len(group), rows, shared, own)
        return taken <= (1 - LOGITS_SHARE) * self.memory


TOKENS_ONLY = BatchLimit()


def network_bytes(
    config: GPTConfig, value_bytes: int, sequences: int, rows: int, shared: int, own: int
) -> int:
    """Estimate the bytes that reading a prefix, and then rows that continue it, takes at one time.

    Args:
        config: the network.
        value_bytes: of an activation.
        sequences: the number of prefixes.
        rows: the number of rows.
        shared: tokens of a prefix; 0 if there is none.
        own: tokens of a row after its prefix.
    """
    kept = 2 * config.kv_dim * config.n_layer * value_bytes * shared  # keys and values of a prefix

    def reading_bytes(count: int, tokens: int, seen: int) -> int:
        width = ACTIVATIONS * value_bytes + (4 * FLOAT_ARRAYS if value_bytes < 4 else 0)
        taken = width * config.n_embd * tokens
        if machine().backend == "cpu":
            taken += SCORES * value_bytes * config.n_head * tokens * seen
        return count * taken

    return max(
        sequences * kept + reading_bytes(sequences, shared, shared),
        (sequences + rows) * kept + reading_bytes(rows, own, shared + own),
    )


def batch_limit(model: GPT, memory_limit: str | None) -> BatchLimit:
    """Return the limit of what is computed at a time.

    Args:
        model: the network, which is in memory.
        memory_limit: what MLX may take, the model included; None for what the machine can spare.

    Raises:
        MemoryLimitError: not even a single row of the context fits.
    """
    config, value_bytes, used = model.config, model.dtype.size, mx.get_active_memory()
    limit = to_bytes(memory_limit) if memory_limit else used + spare_memory()
    if value_bytes < 4:
        used += parameters(config)["matrices"] * value_bytes  # copies in the compute dtype
    row = network_bytes(config, value_bytes, 1, 1, 0, config.sequence_len)
    logits = 4 * LOGIT_ARRAYS * config.vocab_size
    least = max(round(row / (1 - LOGITS_SHARE)), round(logits / LOGITS_SHARE))
    room = int(PEAK_SHARE * limit) - used
    if room < least:
        raise MemoryLimitError(
            f"This model needs {round_size(round((used + least) / PEAK_SHARE))} to read "
            f"{config.sequence_len:,} tokens; the limit is {round_size(limit)}.",
            "Use a larger `memory_limit`, or close other programs.",
        )
    return BatchLimit(memory=room)


def groups(
    model: GPT, examples: Iterable[CoreExample], share: bool, limit: BatchLimit
) -> Iterator[list[CoreReading]]:
    """Yield examples to compute together: of similar length, and alike in what they share.

    A single one may be more than the limit.
    """
    n_layer = model.config.n_layer if share else 0
    readings = [reading(example, n_layer) for example in examples]
    group: list[CoreReading] = []
    for each in sorted(readings, key=lambda each: (each.shared, each.longest)):
        if group:
            shared = group[0].shared
            alike = bool(shared) == bool(each.shared) and each.shared - shared <= SLACK
            if not (alike and limit.allows(model, [*group, each])):
                yield group
                group = []
        group.append(each)
    if group:
        yield group
