"""Which examples of CORE a model gets right, many at a time.

The rules are nanochat's (commit 92d63d4, nanochat/core_eval.py): of answers or contexts, the row
counts as chosen whose tokens have the lowest mean loss, the first of equals; of a completion each
token has to be the likeliest. Prompts longer than the context are read whole.

nanochat computes one example at a time, all its rows from their beginning, and the logits of every
position. Here rows of similar length are computed together, equal ones once, and logits only where
tokens count. And what is in front of those, alike in all rows of an example, is read once, wherever
that saves enough: the rows then continue its keys and values. Of it the last layer computes no
more, which is worth it for the only row of a completion too.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlxchat.evaluate.answers import MAX_BATCH_TOKENS, padded
from mlxchat.evaluate.core_prompts import CoreExample, CoreRow, common_prefix
from mlxchat.model.block import causal_attention
from mlxchat.model.config import GPTConfig
from mlxchat.model.cpu import log_sum_exp
from mlxchat.model.gpt import GPT
from mlxchat.runtime import machine, mx

SLACK = 16  # tokens of a prefix that may be read again, to read prefixes of similar length together
WORTHWHILE = 0.95  # of an example's work: a prefix is read by itself if no more is left to do
LOGITS = 2**24  # at a time


@dataclass(frozen=True)
class CoreVerdict:
    """A model's answer to an example, and whether it is right.

    Attributes:
        index: the example's number in its task.
        right: whether it is right.
        mean_losses: of each row, in nats; NaN for a row without a token that counts, nothing for a
            completion.
        predicted: the likeliest tokens in place of those that count; of a completion only.
    """

    index: int
    right: bool
    mean_losses: tuple[float, ...] = ()
    predicted: tuple[int, ...] = ()


def judge_examples(
    model: GPT, examples: Iterable[CoreExample], padding: int, share: bool | None = None
) -> Iterator[CoreVerdict]:
    """Yield a verdict on each example, in any order.

    Args:
        model: the network.
        examples: of one or several tasks.
        padding: the token after the end of shorter rows.
        share: whether to read what the rows of an example begin with by itself; by default except
            on CUDA, which is faster with many long rows than with few and then short ones.
    """
    if share is None:
        share = machine().backend != "cuda"
    works = [_work(example, model.config.n_layer if share else 0) for example in examples]
    for group in _groups(works):
        yield from _judge_group(model, group, padding)


def tokens_to_read(example: CoreExample, n_layer: int) -> int:
    """Return how many tokens of an example a model of so many layers reads, if it shares them."""
    return _work(example, n_layer).tokens


# ==== Plan ====


class _Work(NamedTuple):
    """An example, its different rows, and how many tokens of their beginning are read once."""

    example: CoreExample
    rows: tuple[CoreRow, ...]
    shared: int

    @property
    def tokens(self) -> int:
        return self.shared + sum(len(row.ids) - self.shared for row in self.rows)

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)


def _work(example: CoreExample, n_layer: int) -> _Work:
    """Return how to read an example with so many layers, or 0 to share nothing."""
    rows = tuple(dict.fromkeys(example.rows))
    whole = _Work(example, rows, 0)
    if not n_layer:
        return whole
    # The last token in front of those that count predicts the first of them: a row reads it.
    most = min(common_prefix([row.ids for row in rows]), *(row.start for row in rows)) - 1
    shared = whole._replace(shared=max(0, most))
    work = shared.tokens - shared.shared / n_layer  # the last layer of a prefix costs little
    return shared if work <= WORTHWHILE * whole.tokens else whole


def _groups(works: Iterable[_Work]) -> Iterator[list[_Work]]:
    """Yield examples to compute together: of similar length, and alike in what they share."""
    group: list[_Work] = []
    rows = longest = 0
    for work in sorted(works, key=lambda work: (work.shared, work.longest)):
        rows, longest = rows + len(work.rows), max(longest, work.longest)
        if group:
            shared = group[0].shared
            tokens = (len(group) + 1) * shared + rows * (longest - shared)
            alike = bool(shared) == bool(work.shared) and work.shared - shared <= SLACK
            if tokens > MAX_BATCH_TOKENS or not alike:
                yield group
                group, rows, longest = [], len(work.rows), work.longest
        group.append(work)
    if group:
        yield group


# ==== Computation ====


def _judge_group(model: GPT, group: Sequence[_Work], padding: int) -> Iterator[CoreVerdict]:
    rows = [row for work in group for row in work.rows]
    shared = group[0].shared  # the least; others read the rest of theirs with each row
    cache = None
    if shared:
        cache = PrefixCache(model.config)
        model.features(mx.array([work.rows[0].ids[:shared] for work in group]), cache)
        cache.repeat([len(work.rows) for work in group])
    ids = padded([row.ids[shared:] for row in rows], padding)
    x = model.features(mx.array(ids), cache)  # (B, T, C)
    counted = [range(row.start, row.end) if row.start else range(0) for row in rows]
    features = [
        (number, place - 1 - shared) for number, places in enumerate(counted) for place in places
    ]
    targets = [row.ids[i] for row, places in zip(rows, counted, strict=True) for i in places]
    values = iter(_of_tokens(model, x, features, targets, group[0].example.gold is None))
    of_row = {}
    for work in group:
        for row in work.rows:
            places = range(row.start, row.end) if row.start else ()
            of_row[row] = [next(values) for _ in places]
        yield _verdict(work.example, [of_row[row] for row in work.example.rows])


def _of_tokens(
    model: GPT,
    x: mx.array,
    places: Sequence[tuple[int, int]],
    targets: Sequence[int],
    likeliest: bool,
) -> list[float]:
    """Return the loss of each target in nats or, with ``likeliest``, the token predicted for it.

    Args:
        model: the network.
        x: its features, (B, T, C).
        places: the row and the position of each prediction.
        targets: what follows there.
        likeliest: whether to return tokens.
    """
    values: list[float] = []
    step = max(1, LOGITS // model.config.vocab_size)
    for begin in range(0, len(places), step):
        row, position = mx.array(np.array(places[begin : begin + step], np.int32).T)  # (N,) each
        logits = model.logits(x[row, position])  # (N, V)
        if likeliest:
            found = logits.argmax(axis=-1)
        else:
            wanted = mx.array(np.array(targets[begin : begin + step], np.int32))[:, None]
            found = log_sum_exp(logits) - mx.take_along_axis(logits, wanted, axis=-1)[:, 0]
        values += np.array(found).tolist()
    return values


def _verdict(example: CoreExample, values: Sequence[Sequence[float]]) -> CoreVerdict:
    """Return the verdict on an example, given a loss or a token for each token that counts."""
    if example.gold is None:
        row = example.rows[0]
        predicted = tuple(map(int, values[0]))
        return CoreVerdict(example.index, predicted == row.ids[row.start : row.end], (), predicted)
    means = [sum(row) / len(row) if row else math.nan for row in values]
    # As in nanochat: a NaN in the first place counts as the lowest, elsewhere never.
    return CoreVerdict(example.index, means.index(min(means)) == example.gold, tuple(means))


class PrefixCache:
    """The keys and values of what several rows begin with; a `mlxchat.model.gpt.Cache`.

    It is read once, by sequences of one length. Then `repeat` makes rows of the sequences, and what
    continues them attends to it and to itself, without being kept.

    Attributes:
        offset: the positions that are kept.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.offset = 0
        self.layers = [PrefixLayer(window) for window in config.windows]
        self._latest: mx.array | None = None  # (B, 1)

    def record(self, ids: mx.array) -> mx.array | None:
        """Record that (B, T) ids are read; returns the last one before them, or None."""
        before = self._latest
        if before is None:
            self._latest = ids[:, -1:]
        return before

    def repeat(self, times: Sequence[int]) -> None:
        """Make so many rows of each sequence.

        The last layer computes nothing but keys and values of it: nobody has asked for more.
        """
        assert self._latest is not None
        rows = mx.array(np.repeat(np.arange(len(times)), times))
        self.offset = self.layers[0].length
        self._latest = self._latest[rows]
        for layer in self.layers:
            layer.repeat(rows)
        mx.eval([self._latest, *(layer.held for layer in self.layers)])


class PrefixLayer:
    """The keys and values of one layer; a `mlxchat.model.block.LayerCache`.

    Args:
        window: positions that each position can see before itself.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self.length = 0
        self.held: tuple[mx.array, ...] = ()  # keys and values, (B, n_kv_head, S, D)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Attend from T new positions, (B, H, T, D), to all that they can see."""
        if not self.held:
            self.held, self.length = (k, v), k.shape[2]
        else:
            k = mx.concatenate([self.held[0], k], axis=2)
            v = mx.concatenate([self.held[1], v], axis=2)
        return causal_attention(q, k, v, scale, self._window)

    def repeat(self, rows: mx.array) -> None:
        """Replace the sequences by these of them, without what no next position can see."""
        first = max(0, self.length - self._window)
        self.held = tuple(array[rows, :, first:] for array in self.held)
