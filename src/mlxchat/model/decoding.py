"""The reading of one position by one function, whose arrays keep their shapes from call to call.

A GPU takes longer to launch the kernels of a single position than to run them, so there the whole
step is compiled. `mx.compile` traces again for every new shape and every new number that is not an
array: keys and values are therefore buffers of fixed size, written at a slot that is an array, and
a mask hides the slots that hold nothing, or nothing that the position can see.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mlxchat.model.attention import UNSEEN
from mlxchat.runtime import mx

KeysAndValues = tuple[mx.array, mx.array]
"""Keys and values of a layer, (B, n_kv_head, S, D) each."""


class Span(NamedTuple):
    """Which slots of a layer's buffers a new position takes and sees. All are int32.

    Attributes:
        slots: 0, 1, 2 and so on, (S,).
        first: the first slot that each sequence sees, (B, 1, 1, 1), or (1, 1, 1, 1) for all.
        last: the slot of the new position, (1, 1, 1, 1), which is the last that it sees.
    """

    slots: mx.array
    first: mx.array
    last: mx.array


class Held(NamedTuple):
    """What a step gets of the positions before it.

    Attributes:
        offset: how many each sequence has, (B,), or () for all.
        latest: the ids of the last one, (B, 1).
        spans: the different spans of the layers.
        span_of_layer: the place in ``spans`` of each layer's.
        buffers: of each layer.
    """

    offset: mx.array
    latest: mx.array
    spans: Sequence[Span]
    span_of_layer: Sequence[int]
    buffers: Sequence[KeysAndValues]


DecodeStep = Callable[[mx.array, Held], tuple[mx.array, list[KeysAndValues]]]
"""Reads the ids of one position, (B, 1).

Returns the logits of the next token, (B, V), and the buffers with the new keys and values in them.
Those passed are written in place unless something else refers to them when the result is computed.
"""


class _Cached(Protocol):
    def __call__(self, ids: mx.array, cache: "FixedCache") -> mx.array: ...


def read_position(
    model: _Cached, ids: mx.array, held: Held
) -> tuple[mx.array, list[KeysAndValues]]:
    """Read one position with a model; with the first argument bound, this is a `DecodeStep`."""
    cache = FixedCache(held)
    logits = model(ids, cache)[:, -1]  # (B, V)
    return logits, [(layer.keys, layer.values) for layer in cache.layers]


class FixedCache:
    """A `mlxchat.model.gpt.Cache` for one position, of nothing but the arrays in ``held``."""

    def __init__(self, held: Held) -> None:
        self.offset = held.offset
        self._latest = held.latest
        dtype = held.buffers[0][0].dtype
        masks = [_mask(span, dtype) for span in held.spans]  # few: they are shared by layers
        self.layers = [
            FixedLayer(*buffers, held.spans[number].last, masks[number])
            for buffers, number in zip(held.buffers, held.span_of_layer, strict=True)
        ]

    def record(self, ids: mx.array) -> mx.array:
        """Return the ids before ``ids``, (B, 1)."""
        return self._latest


class FixedLayer:
    """The buffers of one layer, (B, n_kv_head, S, D), and the slot of the new position."""

    def __init__(self, keys: mx.array, values: mx.array, slot: mx.array, mask: mx.array) -> None:
        self.keys, self.values = keys, values
        self._slot, self._mask = slot, mask

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Write keys and values, (B, n_kv_head, 1, D), into their slot; returns all, and the mask.

        `mx.put_along_axis` is one kernel on GPUs, where `mx.slice_update` takes two.
        """
        self.keys = mx.put_along_axis(self.keys, self._slot, keys, axis=2)
        self.values = mx.put_along_axis(self.values, self._slot, values, axis=2)
        return self.keys, self.values, self._mask


def _mask(span: Span, dtype: mx.Dtype) -> mx.array:
    """Return what to add to the scores, (B or 1, 1, 1, S)."""
    seen = (span.slots >= span.first) & (span.slots <= span.last)
    return mx.where(seen, mx.array(0, dtype), mx.array(UNSEEN, dtype))
