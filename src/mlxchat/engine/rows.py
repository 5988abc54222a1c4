"""Keys and values of sequences that join and leave, in buffers that keep their shapes.

`KVCache` and `BatchCache` are for sequences that begin together. Here each row of the buffers is a
sequence that begins in the first slot and has its own end, so nothing has to be moved when another
sequence joins or leaves.
"""

from collections.abc import Sequence

import numpy as np

from mlxchat.engine.cache import KVCache, slots
from mlxchat.model.attention import Span
from mlxchat.model.config import GPTConfig
from mlxchat.model.decoding import DecodeState, FixedCache, Place, put
from mlxchat.model.gpt import GPT
from mlxchat.model.size import cache_capacity
from mlxchat.runtime import mx

Past = list[mx.array]
"""Keys and values of a sequence: (layers, 2, n_kv_head, n, D), for each window that layers have."""

SHRINK = 4  # buffers are replaced by smaller ones when so small a share of them would do


class Layout:
    """The division of a model's layers among arrays: layers with the same window share one."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.windows = sorted(set(config.windows))
        self._layers: list[list[int]] = [[] for _ in self.windows]
        self.places = []
        for layer, window in enumerate(config.windows):
            array = self.windows.index(window)
            self.places.append(Place(array, len(self._layers[array])))
            self._layers[array].append(layer)

    def past(self, cache: KVCache) -> Past:
        """Return copies of what a whole cache of one sequence holds, computed."""
        held = [layer.held for layer in cache.layers]
        past = [
            mx.stack([mx.concatenate([*held[layer]]) for layer in layers])
            for layers in self._layers
        ]
        mx.eval(past)
        return past

    def cache(self, ids: Sequence[int], past: Past) -> KVCache:
        """Return a whole cache that holds the past of these ids, of one sequence."""
        cache = KVCache(self.config, whole=True)
        if ids:
            cache.record(mx.array([ids]))
            for place, layer in zip(self.places, cache.layers, strict=True):
                own = past[place.array][place.layer, :, None, :, : len(ids)]
                layer.extend(own[0], own[1])
        return cache


class SequenceRows:
    """The buffers of all sequences that have joined, one row each, without gaps.

    Like the others, layers with a window keep all positions of a sequence, so that any prefix of it
    can be continued later.

    Attributes:
        lengths: the positions of each row.
    """

    def __init__(self, layout: Layout) -> None:
        self.lengths: list[int] = []
        self._layout = layout
        self._buffers: list[mx.array] = []  # (layers, 2, B, n_kv_head, S, D) by window

    @property
    def size(self) -> int:
        """The number of rows that the buffers have room for: a power of two, or 0."""
        return self._buffers[0].shape[2] if self._buffers else 0

    @property
    def _slots(self) -> int:
        return self._buffers[0].shape[4] if self._buffers else 0

    def join(self, past: Past) -> None:
        """Append a row with a past of at least one position."""
        row, length = len(self.lengths), past[0].shape[3]
        self.lengths.append(length)
        self._fit(past)
        for buffers, own in zip(self._buffers, past, strict=True):
            # The whole row: what a hidden slot holds is multiplied by 0, and must be a number.
            buffers[:, :, row] = mx.pad(own, [(0, 0)] * 3 + [(0, self._slots - length), (0, 0)])

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = len(self.lengths) - 1
        for buffers in self._buffers:
            if row < last:
                buffers[:, :, row] = buffers[:, :, last]
        self.lengths[row] = self.lengths[last]
        del self.lengths[last]
        if not self.lengths:
            self._buffers = []
            return
        rows, positions = _power_of_two(last), cache_capacity(max(self.lengths) + 1)
        if rows * SHRINK <= self.size or positions * SHRINK <= self._slots:
            self._resize(rows, positions)

    def past(self, row: int, length: int) -> Past:
        """Return copies of a row's first positions, computed."""
        past = [mx.contiguous(buffers[:, :, row, :, :length]) for buffers in self._buffers]
        mx.eval(past)
        return past

    def read(self, model: GPT, ids: mx.array, latest: mx.array) -> mx.array:
        """Read a position of each row: (B,) ids; returns the logits after it, (B, V).

        Args:
            model: B is `size` for a model with a compiled step, whose arrays keep their shapes;
                otherwise the number of rows.
            ids: the ids to read, one of each row.
            latest: the ids before them, (B,).
        """
        self._fit()
        lengths = np.zeros(len(ids), np.int32)
        lengths[: len(self.lengths)] = self.lengths
        read = _read_compiled if model.decode_step is not None else _read_seen
        logits, self._buffers = read(
            model, ids[:, None], latest[:, None], lengths, self._buffers, self._layout
        )
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def arrays(self) -> list[mx.array]:
        """Return the buffers, to be computed."""
        return self._buffers

    def _fit(self, like: Past | None = None) -> None:
        """Make room for all rows and one more position of each."""
        rows, positions = _power_of_two(len(self.lengths)), cache_capacity(max(self.lengths) + 1)
        if not self._buffers and like is not None:
            self._buffers = [
                mx.zeros((*own.shape[:2], rows, own.shape[2], positions, own.shape[4]), own.dtype)
                for own in like
            ]
        elif rows > self.size or positions > self._slots:
            self._resize(max(rows, self.size), max(positions, self._slots))

    def _resize(self, rows: int, positions: int) -> None:
        kept_rows, kept = min(rows, self.size), min(positions, self._slots)
        room = [(0, 0), (0, 0), (0, rows - kept_rows), (0, 0), (0, positions - kept), (0, 0)]
        self._buffers = [mx.pad(b[:, :, :kept_rows, :, :kept], room) for b in self._buffers]
        mx.eval(self._buffers)  # now, so that the former ones are freed


_Read = tuple[mx.array, list[mx.array]]


def _read_compiled(
    model: GPT,
    ids: mx.array,
    latest: mx.array,
    lengths: np.ndarray,
    buffers: list[mx.array],
    layout: Layout,
) -> _Read:
    assert model.decode_step is not None
    numbers, taken = slots(buffers[0].shape[4]), mx.array(lengths[:, None, None, None])
    spans = [Span(numbers, _first(lengths, window), taken) for window in layout.windows]
    state = DecodeState(mx.array(lengths), latest, buffers, spans, layout.places)
    return model.decode_step(ids, state)


def _read_seen(
    model: GPT,
    ids: mx.array,
    latest: mx.array,
    lengths: np.ndarray,
    buffers: list[mx.array],
    layout: Layout,
) -> _Read:
    """Read a position with views of the slots that some row sees: on CPUs shapes are free."""
    B, taken = len(lengths), mx.array(lengths[:, None, None, None])
    views, spans = [], []
    for window, array in zip(layout.windows, buffers, strict=True):
        begin, end = max(0, int(lengths.min()) - window), int(lengths.max())
        views.append(array[:, :, :B, :, begin:end])
        spans.append(Span(mx.arange(begin, end), _first(lengths, window), taken))
    cache = FixedCache(DecodeState(mx.array(lengths), latest, views, spans, layout.places))
    logits = model(ids, cache)[:, -1]  # (B, V)
    unused = buffers[0].shape[2] - B
    taken = mx.pad(taken, [(0, unused), (0, 0), (0, 0), (0, 0)])
    written = []
    for array, new in zip(buffers, cache.latest(), strict=True):
        padded = mx.pad(new, [(0, 0), (0, 0), (0, unused), (0, 0), (0, 0), (0, 0)])
        written.append(put(array, taken, padded))
    return logits, written


def _first(lengths: np.ndarray, window: int) -> mx.array:
    return mx.array(np.maximum(lengths - window, 0)[:, None, None, None])


def _power_of_two(rows: int) -> int:
    return 1 << max(0, rows - 1).bit_length()
