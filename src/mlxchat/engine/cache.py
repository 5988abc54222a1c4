"""The key-value cache, with which every token is processed only once.

`KVCache` is the cache of one or more sequences of equal length, read in pieces of any length.
`BatchCache` joins the caches of several sequences of different lengths, which are then extended
together, one position at a time. Both implement `mlxchat.model.gpt.Cache`: each layer attends only
to the keys that are visible. `read_with` instead reads a position with a `DecodeStep`, which gets
complete buffers, with those of several layers in one array.
"""

from collections.abc import Sequence
from functools import cache as cached
from typing import NamedTuple

import numpy as np

from mlxchat.model.attention import UNSEEN, Span
from mlxchat.model.block import causal_attention
from mlxchat.model.config import GPTConfig
from mlxchat.model.decoding import DecodeState, DecodeStep, Place
from mlxchat.model.size import cache_capacity
from mlxchat.runtime import mx

KeysAndValues = tuple[mx.array, mx.array]
"""Keys and values of a layer, (B, n_kv_head, S, D) each."""


class KVCache:
    """A model's cache: one cache per layer, and the tokens read so far.

    Args:
        config: the model's.
        whole: whether layers with a window also keep all positions, so that any prefix of the
            tokens read can be continued.
    """

    def __init__(self, config: GPTConfig, whole: bool = False) -> None:
        kept = config.sequence_len if whole else 0
        self.layers = [KVLayer(window, max(kept, window)) for window in config.windows]
        self._ids: list[mx.array] = []  # (B, T) each

    @property
    def offset(self) -> int:
        """The number of positions that every layer has read."""
        return min(layer.offset for layer in self.layers)

    @property
    def latest(self) -> mx.array | None:
        """The last ids read, (B, 1); None if none have been."""
        return self._ids[-1][:, -1:] if self._ids else None

    def record(self, ids: mx.array) -> mx.array | None:
        """Record that (B, T) ids are read; returns the ids before them, (B, 1), or None."""
        before = self.latest
        self._ids.append(ids)
        return before

    def trim(self, length: int) -> None:
        """Forget all but the first ``length`` positions.

        Everything is forgotten if a layer with a window no longer holds what position ``length``
        can see. A layer can always forget the last position it has read, or an interrupted piece.

        Raises:
            ValueError: fewer positions than ``length`` have been read.
        """
        if not 0 <= length <= self.offset:
            raise ValueError(f"cannot trim a cache of {self.offset} positions to {length}")
        if not all(layer.can_trim(length) for layer in self.layers):
            length = 0
        for layer in self.layers:
            layer.trim(length)
        excess = sum(ids.shape[1] for ids in self._ids) - length
        while excess > 0:
            ids = self._ids.pop()
            if ids.shape[1] > excess:
                self._ids.append(ids[:, :-excess])
            excess -= ids.shape[1]


class KVLayer:
    """The keys and values of one layer, in buffers that double when they are full.

    Writing into a buffer only costs the new positions; concatenation would copy all earlier ones
    for each token. When its buffers are full, a layer with a window drops the positions that no new
    one can see.

    Args:
        window: positions that each position can see before itself.
        kept: the positions before the last one that are not dropped, at least ``window``, which it
            is by default.

    Attributes:
        offset: positions read.
    """

    def __init__(self, window: int, kept: int | None = None) -> None:
        self.offset = 0
        self._window = window
        self._kept = window if kept is None else kept
        # One of the two holds keys and values, once there are any.
        self._buffers: KeysAndValues | None = None  # (B, H, capacity, D)
        self._shared: Share | None = None
        self._end = 0  # positions in the buffers: the last ones read
        self._missing = np.zeros(1, np.int32)  # at the beginning of the buffers, by sequence

    @classmethod
    def joined(cls, layers: Sequence["KVLayer"]) -> "KVLayer":
        """Return one layer for the sequences of several, aligned at their ends.

        The layers have one sequence each, and at least one position. They do not change.
        """
        seen = [layer.visible for layer in layers]
        lengths = [keys.shape[2] for keys, _ in seen]
        joined, longest = cls(layers[0]._window), max(lengths)
        joined.offset, joined._end = max(layer.offset for layer in layers), longest
        joined._missing = longest - np.array(lengths, np.int32)
        keys, values = (
            mx.concatenate(
                [
                    _padded(x, longest - x.shape[2], cache_capacity(longest) - longest)
                    for x in arrays
                ]
            )
            for arrays in zip(*seen, strict=True)
        )
        joined._buffers = keys, values
        return joined

    @property
    def buffers(self) -> KeysAndValues:
        """Keys and values, (B, H, capacity, D), of which those up to now are read."""
        if self._shared is not None:
            array, number = self._shared.stack.array, self._shared.number
            return array[number, 0], array[number, 1]
        assert self._buffers is not None
        return self._buffers

    @property
    def held(self) -> KeysAndValues:
        """Keys and values of the positions that are held, the last ones read, in order."""
        keys, values = self.buffers
        return keys[:, :, : self._end], values[:, :, : self._end]

    @property
    def capacity(self) -> int:
        """The number of positions that the buffers have room for."""
        array = self._shared.stack.array if self._shared is not None else self.buffers[0]
        return array.shape[-2]

    @property
    def visible(self) -> KeysAndValues:
        """Keys and values that the next position can see: at most ``window`` positions, in order.

        There must be at least one.
        """
        keys, values = self.buffers
        begin = max(0, self._end - self._window)
        return keys[:, :, begin : self._end], values[:, :, begin : self._end]

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Append T new positions, and attend from them, (B, H, T, D), to all that they can see."""
        k, v, mask = self.extend(k, v)
        return causal_attention(q, k, v, scale, self._window, mask)

    def extend(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Append (B, H, T, D) keys and values.

        Returns:
            Keys and values of all that the new positions can see, and the mask that hides the
            positions that shorter sequences do not have, if there are any.
        """
        T = keys.shape[2]
        if self._buffers is None and self._shared is None:
            end = min(T, self._kept + 1)
            buffers = _with_room(keys, values, T, end, cache_capacity(end))
            seen, hidden = (keys, values), None
        else:
            self.make_room(T)
            buffers, begin, end = self.buffers, max(0, self._end - self._window), self._end + T
            for buffer, new in zip(buffers, (keys, values), strict=True):
                buffer[:, :, self._end : end] = new
            seen = buffers[0][:, :, begin:end], buffers[1][:, :, begin:end]
            hidden = self._hidden(begin, end, keys.dtype)
        # Only now, and without a call in between: Ctrl-C may come at any moment.
        self._buffers, self._shared, self._end, self.offset = buffers, None, end, self.offset + T
        return *seen, hidden

    def make_room(self, T: int) -> None:
        """Make room in the buffers for T more positions, at least one having been read.

        One position more than what is seen is kept, so that the last one read can be trimmed.
        """
        if self._end + T <= self.capacity:
            return
        kept = min(self._end, self._kept + 1)
        buffers = _with_room(*self.buffers, self._end, kept, cache_capacity(kept + T))
        missing = np.maximum(self._missing - (self._end - kept), 0)
        self._buffers, self._shared, self._end, self._missing = buffers, None, kept, missing

    def _hidden(self, begin: int, end: int, dtype: mx.Dtype) -> mx.array | None:
        """Return the mask of the slots from ``begin`` to ``end``, (B, 1, 1, S), if it hides any."""
        if begin >= self._missing.max():
            return None
        hidden = mx.arange(begin, end) < mx.array(self._missing)[:, None, None, None]
        return mx.where(hidden, mx.array(UNSEEN, dtype), mx.array(0, dtype))

    @property
    def span_key(self) -> tuple[int, int, int]:
        """The window, the end and the capacity: layers that agree in them share a `span`."""
        return self._window, self._end, self.capacity

    def span(self) -> Span:
        """Return which slots the next position sees and takes; `make_room` has made room for it."""
        # Shaped by numpy: every operation of MLX costs time, for each token.
        first = np.maximum(self._missing, self._end - self._window)[:, None, None, None]
        taken = np.full((1, 1, 1, 1), self._end, np.int32)
        return Span(slots(self.capacity), mx.array(first), mx.array(taken))

    def advance(self) -> None:
        """Count the next position, whose keys and values a step has written."""
        self._end, self.offset = self._end + 1, self.offset + 1

    def can_trim(self, length: int) -> bool:
        """Return whether the layer still holds what position number ``length`` can see."""
        dropped = self.offset - self._end
        return 0 <= length <= self.offset and (dropped == 0 or length - dropped >= self._window)

    def trim(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        self._end = max(0, self._end - (self.offset - length))
        self.offset = length
        if length == 0:
            self._buffers, self._shared, self._end = None, None, 0

    @property
    def shared(self) -> "Share | None":
        """The place of its buffers among those of other layers; None if they are its own."""
        return self._shared

    def keep(self, rows: mx.array) -> None:
        """Forget all sequences but those in these rows."""
        keys, values = self.buffers
        self._buffers, self._shared = (keys[rows], values[rows]), None
        self._missing = self._missing[np.array(rows)]

    def share(self, share: "Share") -> None:
        """Give up its own buffers for those at a place among other layers'."""
        self._buffers, self._shared = None, share


class Stack:
    """The buffers of similar layers in one array.

    Attributes:
        array: (layers, 2, B, H, capacity, D), keys before values.
    """

    def __init__(self, layers: Sequence[KVLayer]) -> None:
        arrays = [array for layer in layers for array in layer.buffers]
        self.array = mx.stack(arrays).reshape(len(layers), 2, *arrays[0].shape)
        for number, layer in enumerate(layers):
            layer.share(Share(self, number))

    @classmethod
    def of(cls, layers: Sequence[KVLayer]) -> "Stack":
        """Return the stack of these layers: the one that they share, or a new one."""
        shared = layers[0].shared
        if shared is not None and len(shared.stack.array) == len(layers):
            stack = shared.stack
            if all(layer.shared == Share(stack, n) for n, layer in enumerate(layers)):
                return stack
        return cls(layers)


class Share(NamedTuple):
    """A layer's place in a stack."""

    stack: Stack
    number: int


class BatchCache:
    """The cache of B sequences that are extended together, one position at a time.

    The sequences are aligned at their ends, so a new position has the same place in all of them;
    each sequence counts its own positions.

    Args:
        caches: caches of batch size 1, each with at least one position; they do not change. One may
            occur several times: the samples that continue one prompt share its prefill.
    """

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self._lengths = np.array([cache.offset for cache in caches], np.int32)
        latest = [ids for ids in (cache.latest for cache in caches) if ids is not None]
        self.latest = mx.concatenate(latest)  # (B, 1)
        rows = zip(*(cache.layers for cache in caches), strict=True)
        self.layers = [KVLayer.joined(layers) for layers in rows]

    @property
    def offset(self) -> mx.array:
        """Positions read by each sequence, (B,)."""
        return mx.array(self._lengths)

    def record(self, ids: mx.array) -> mx.array:
        """Record that (B, 1) ids are read; returns the ids before them, (B, 1).

        Raises:
            ValueError: there is more than one position.
        """
        if ids.shape[1] != 1:
            raise ValueError(f"a batch is extended by one position, not {ids.shape[1]}")
        before, self.latest = self.latest, ids
        self._lengths = self._lengths + 1
        return before

    def keep(self, rows: mx.array) -> None:
        """Forget all sequences but those in these rows."""
        self._lengths, self.latest = self._lengths[np.array(rows)], self.latest[rows]
        for layer in self.layers:
            layer.keep(rows)


def read_with(step: DecodeStep, ids: mx.array, cache: KVCache | BatchCache) -> mx.array:
    """Read the ids of one position, (B, 1), by a step, as the model would read them.

    Args:
        cache: extended in place; it has at least one position.

    Returns:
        The logits of the next token, (B, V).
    """
    assert cache.latest is not None
    by_span: dict[tuple[int, int, int], list[KVLayer]] = {}
    for layer in cache.layers:
        layer.make_room(1)
        by_span.setdefault(layer.span_key, []).append(layer)
    groups = list(by_span.values())
    place = {layer: Place(n, i) for n, group in enumerate(groups) for i, layer in enumerate(group)}
    places = [place[layer] for layer in cache.layers]
    stacks, spans = [Stack.of(group) for group in groups], [group[0].span() for group in groups]
    latest = cache.latest.astype(ids.dtype)  # a prompt's may differ, and would be traced apart
    buffers = [stack.array for stack in stacks]
    logits, buffers = step(ids, DecodeState(mx.array(cache.offset), latest, buffers, spans, places))
    cache.record(ids)
    for stack, written in zip(stacks, buffers, strict=True):
        stack.array = written
    for layer in cache.layers:
        layer.advance()
    return logits


@cached
def slots(capacity: int) -> mx.array:
    """Return the numbers of so many slots, (S,): an array that `mx.compile` knows again."""
    numbers = mx.arange(capacity)
    mx.eval(numbers)
    return numbers


def _with_room(
    keys: mx.array, values: mx.array, end: int, kept: int, capacity: int
) -> KeysAndValues:
    """Copy the last ``kept`` of the first ``end`` positions to the beginning of larger buffers."""
    keys, values = (_padded(x[:, :, end - kept : end], 0, capacity - kept) for x in (keys, values))
    return keys, values


def _padded(array: mx.array, before: int, after: int) -> mx.array:
    """Pad (B, H, n, D) by so many positions on both sides."""
    return mx.pad(array, [(0, 0), (0, 0), (before, after), (0, 0)])
