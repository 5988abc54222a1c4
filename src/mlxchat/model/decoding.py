"""The reading of one position by one function, whose arrays keep their shapes from call to call.

A GPU takes longer to launch the kernels of a single position than to run them, so there the whole
step is compiled. `mx.compile` traces again for every new shape and every new number that is not an
array: keys and values are therefore buffers of fixed size, the new position's slot is an array, and
slots are hidden that hold nothing, or nothing that the position can see.

The layers that see the same slots share one array. It does not hold the new position while they
read it, and is written once, when all have read.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mlxchat.model.attention import Span, attend_to_buffers
from mlxchat.model.stack import stack_small
from mlxchat.runtime import mx


class Place(NamedTuple):
    """The place of a layer's keys and values: the number of the array, and the layer's in it."""

    array: int
    layer: int


class DecodeState(NamedTuple):
    """The arrays that a step gets of the positions before it.

    Attributes:
        offset: how many each sequence has, (B,), or () for all.
        latest: the ids of the last one, (B, 1).
        buffers: keys and values of the layers with the same span, (layers, 2, B, n_kv_head, S, D).
        spans: which slots of each array are seen.
        places: of all layers, in order.
    """

    offset: mx.array
    latest: mx.array
    buffers: Sequence[mx.array]
    spans: Sequence[Span]
    places: Sequence[Place]


DecodeStep = Callable[[mx.array, DecodeState], tuple[mx.array, list[mx.array]]]
"""Reads the ids of one position, (B, 1).

Returns the logits of the next token, (B, V), and the buffers with the new keys and values in them.
Those passed are written in place unless something else refers to them when the result is computed,
such as a step that is still under way.
"""


class _CachedModel(Protocol):
    def __call__(self, ids: mx.array, cache: "FixedCache") -> mx.array: ...


def read_position(
    model: _CachedModel, ids: mx.array, state: DecodeState
) -> tuple[mx.array, list[mx.array]]:
    """Read one position with a model; with the first argument bound, this is a `DecodeStep`."""
    cache = FixedCache(state)
    logits = model(ids, cache)[:, -1]  # (B, V)
    return logits, cache.written()


class FixedCache:
    """A `mlxchat.model.gpt.Cache` for one position, of nothing but the arrays in ``state``."""

    def __init__(self, state: DecodeState) -> None:
        self.offset = state.offset
        self._state = state
        self.layers = [FixedLayer(state, place) for place in state.places]

    def record(self, ids: mx.array) -> mx.array:
        """Return the ids before ``ids``, (B, 1)."""
        return self._state.latest

    def latest(self) -> list[mx.array]:
        """Return the keys and values that the position added to each array of buffers.

        They are (layers, 2, B, n_kv_head, 1, D) each.
        """
        new: list[list[mx.array]] = [[] for _ in self._state.buffers]
        for place, layer in zip(self._state.places, self.layers, strict=True):
            new[place.array] += layer.new
        return [stack_small(parts).reshape(-1, 2, *parts[0].shape) for parts in new]

    def written(self) -> list[mx.array]:
        """Return the buffers with the keys and values of the position that was read."""
        return [
            put(buffers, span.taken, latest)
            for buffers, span, latest in zip(
                self._state.buffers, self._state.spans, self.latest(), strict=True
            )
        ]


def put(buffers: mx.array, taken: mx.array, latest: mx.array) -> mx.array:
    """Return buffers with a position's keys and values, (layers, 2, B, n_kv_head, 1, D), in them.

    Args:
        buffers: (layers, 2, B, n_kv_head, S, D).
        taken: the slot of each sequence, (B, 1, 1, 1), or (1, 1, 1, 1) for all.
        latest: what to write.
    """
    # One kernel on GPUs, where `mx.slice_update` takes two.
    return mx.put_along_axis(buffers, taken[None, None], latest, axis=4)


class FixedLayer:
    """The `mlxchat.model.block.LayerCache` of one layer.

    Attributes:
        new: the key and the value of the position that was read, (B, n_kv_head, 1, D) each.
    """

    def __init__(self, state: DecodeState, place: Place) -> None:
        self.new: tuple[mx.array, ...] = ()
        self._buffers, self._span = state.buffers[place.array], state.spans[place.array]
        self._layer = place.layer

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Attend from one position, (B, H, 1, D), to itself and to those in the buffers."""
        self.new = k, v
        return attend_to_buffers(q, k, v, self._buffers, self._layer, self._span, scale)
