"""Determines which of CORE's examples a model gets right, many at a time.

The rules are nanochat's (commit 92d63d4, nanochat/core_eval.py). Among answers or contexts, the
model chooses the row whose tokens have the lowest mean loss, and the first of equals. In a
completion, every token must be the most likely one. Prompts longer than the context are not
truncated.

nanochat computes one example at a time, every row from its beginning, and the logits at every
position. Here rows of similar length are batched, identical rows are computed once, and logits are
computed only where tokens are scored. The beginning that all rows of an example share is read once,
if that saves enough, and the rows then continue from its keys and values. The last layer computes
nothing but keys and values for it, which pays off even for the single row of a completion.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlxchat.evaluate.answers import padded
from mlxchat.evaluate.core_batches import TOKENS_ONLY, BatchLimit, CoreReading, groups
from mlxchat.evaluate.core_prompts import CoreExample, CoreRow
from mlxchat.model.block import causal_attention
from mlxchat.model.config import GPTConfig
from mlxchat.model.cpu import log_sum_exp
from mlxchat.model.gpt import GPT
from mlxchat.runtime import machine, mx


@dataclass(frozen=True)
class CoreVerdict:
    """A model's answer to an example, and whether it is right.

    Attributes:
        index: the example's number in its task.
        right: whether it is right.
        mean_losses: the mean loss of each row in nats; NaN for a row without scored tokens, empty
            for a completion.
        predicted: the most likely tokens in place of the scored ones; only for a completion.
    """

    index: int
    right: bool
    mean_losses: tuple[float, ...] = ()
    predicted: tuple[int, ...] = ()


def judge_examples(
    model: GPT,
    examples: Iterable[CoreExample],
    padding: int,
    share: bool | None = None,
    limit: BatchLimit = TOKENS_ONLY,
) -> Iterator[CoreVerdict]:
    """Yield a verdict on each example, in any order.

    Args:
        model: the network.
        examples: of one or several tasks.
        padding: the token after the end of shorter rows.
        share: whether to read what the rows of an example begin with by itself; by default except
            on CUDA, which is faster with many long rows than with few and then short ones.
        limit: the most to compute at a time. Of an example that is more by itself, the rows are
            computed one after another.
    """
    if share is None:
        share = machine().backend != "cuda"
    places = limit.places(model.config.vocab_size)
    for group in groups(model, examples, share, limit):
        parts = [group]
        if not limit.allows(model, group):
            [large] = group
            parts = [[large._replace(rows=(row,), shared=0)] for row in large.rows]
        of_row: dict[CoreRow, list[float]] = {}
        for part in parts:
            of_row |= _read(model, part, padding, places)
        for each in group:
            yield _verdict(each.example, [of_row[row] for row in each.example.rows])


def _read(
    model: GPT, group: Sequence[CoreReading], padding: int, places: int
) -> dict[CoreRow, list[float]]:
    """Return a loss or a token for each token that counts, of the rows of a group."""
    rows = [row for each in group for row in each.rows]
    shared = group[0].shared  # the least; others read the rest of theirs with each row
    cache = None
    if shared:
        cache = PrefixCache(model.config)
        model.features(mx.array([each.rows[0].ids[:shared] for each in group]), cache)
        cache.repeat([len(each.rows) for each in group])
    ids = padded([row.ids[shared:] for row in rows], padding)
    x = model.features(mx.array(ids), cache)  # (B, T, C)
    counted = [range(row.start, row.end) if row.start else range(0) for row in rows]
    features = [(number, place - 1 - shared) for number, of in enumerate(counted) for place in of]
    targets = [row.ids[place] for row, of in zip(rows, counted, strict=True) for place in of]
    values = iter(_of_tokens(model, x, features, targets, group[0].example.gold is None, places))
    return {row: [next(values) for _ in of] for row, of in zip(rows, counted, strict=True)}


def _of_tokens(
    model: GPT,
    x: mx.array,
    places: Sequence[tuple[int, int]],
    targets: Sequence[int],
    likeliest: bool,
    step: int,
) -> list[float]:
    """Return the loss of each target in nats or, with ``likeliest``, the token predicted for it.

    Args:
        model: the network.
        x: its features, (B, T, C).
        places: the row and the position of each prediction.
        targets: what follows there.
        likeliest: whether to return tokens.
        step: the most predictions at a time.
    """
    values: list[float] = []
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
    """The keys and values of the beginning that several rows share; a `mlxchat.model.gpt.Cache`.

    The beginnings, all of one length, are read once. Then `repeat` turns them into rows; tokens
    that continue a row attend to its beginning and to each other, and are not cached.

    Attributes:
        offset: the number of cached positions.
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
