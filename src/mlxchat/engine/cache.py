"""What a model has read: keys and values, so that every token is processed once.

Several sequences that a model extends together, a position at a time.
"""

from collections.abc import Sequence

from mlxchat.model.block import UNSEEN
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx

Held = tuple[mx.array, mx.array]
"""Keys and values of a layer, (B, H, S, D)."""


class LayerCache:
    """The keys and values of a layer that sees ``window`` positions before each one.

    Attributes:
        offset: positions read.
    """

    def __init__(self, window: int) -> None:
        self.offset = 0
        self._window = window
        self._held: Held | None = None

    @property
    def held(self) -> Held:
        """Of the positions that the next one can see, in their order."""
        assert self._held is not None
        return self._held

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, None]:
        """Append (B, H, T, D) keys and values; returns all that the new positions can see."""
        T = keys.shape[2]
        if self._held is not None:
            earlier_keys, earlier_values = self._held
            keys = mx.concatenate([earlier_keys, keys], axis=2)
            values = mx.concatenate([earlier_values, values], axis=2)
        held = keys[:, :, -self._window :], values[:, :, -self._window :]
        self._held, self.offset = held, self.offset + T  # only now: Ctrl-C may come at any moment
        return keys, values, None

    def can_trim(self, length: int) -> bool:
        """Whether all that follows the first ``length`` positions can be forgotten: not where what
        they saw before them has gone.
        """
        complete = self._held is None or self._held[0].shape[2] == self.offset
        return length == self.offset or (complete and 0 <= length <= self.offset)

    def trim(self, length: int) -> None:
        """Forget all that follows the first ``length`` positions."""
        if length == 0:
            self._held = None
        elif self._held is not None and length < self.offset:
            keys, values = (array[:, :, : length - self.offset] for array in self._held)
            self._held = keys, values
        self.offset = length


class Cache:
    """The cache of a model: its layers', and the tokens read.

    Fulfils `mlxchat.model.gpt.Cache`.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [LayerCache(window) for window in config.windows]
        self._ids: list[mx.array] = []  # (B, T) each

    @property
    def offset(self) -> int:
        """Positions read by every layer."""
        return min(layer.offset for layer in self.layers)

    @property
    def latest(self) -> mx.array | None:
        """The last ids read, (B, 1); None at the beginning."""
        return self._ids[-1][:, -1:] if self._ids else None

    def read(self, ids: mx.array) -> mx.array | None:
        """Note (B, T) ids as read; returns the ones before them, (B, 1), None at the beginning."""
        before = self.latest
        self._ids.append(ids)
        return before

    def append(self, ids: mx.array, held: Sequence[Held]) -> None:
        """Take in (B, T) ids that were read elsewhere, with each layer's keys and values."""
        self.read(ids)
        for layer, (keys, values) in zip(self.layers, held, strict=True):
            layer.extend(keys, values)

    def trim(self, length: int) -> None:
        """Forget all but the first ``length`` positions; or all, where a window has moved past.

        Raises:
            ValueError: fewer positions than ``length`` have been read.
        """
        if not 0 <= length <= self.offset:
            raise ValueError(f"cannot trim a cache of {self.offset} positions to {length}")
        if not all(layer.can_trim(length) for layer in self.layers):
            length = 0
        for layer in self.layers:
            layer.trim(length)
        read, self._ids = self._ids, []
        for ids in read:
            if length > 0:
                self._ids.append(ids[:, :length])
            length -= ids.shape[1]


STEP = 256  # positions by which buffers grow; cuDNN decodes fast at multiples of it


class Batch:
    """What B sequences have read. Fulfils `mlxchat.model.gpt.Cache`, for single positions.

    It is aligned at its end, so that a position lies in the same place for all; each sequence
    counts its own positions.

    Args:
        caches: of batch size 1, with a position at least; they are not changed. One may occur
            several times: the samples that continue one prompt share its prefill.
        windows: of the layers.
    """

    def __init__(self, caches: Sequence[Cache], windows: Sequence[int]) -> None:
        lengths = [cache.offset for cache in caches]
        self._begin = max(lengths)
        padding = [self._begin - length for length in lengths]
        self.offset = mx.array(lengths)
        latest = [ids for ids in (cache.latest for cache in caches) if ids is not None]
        self._latest = mx.concatenate(latest)  # (B, 1)
        layers = zip(*(cache.layers for cache in caches), windows, strict=True)
        self.layers = [
            BatchLayer([row.held for row in rows], padding, self._begin, window)
            for *rows, window in layers
        ]

    def read(self, ids: mx.array) -> mx.array:
        """Note (B, 1) ids as read; returns the ones before them, (B, 1).

        Raises:
            ValueError: there are more positions than one.
        """
        if ids.shape[1] != 1:
            raise ValueError(f"a batch is extended by one position, not {ids.shape[1]}")
        before, self._latest = self._latest, ids
        self.offset = self.offset + 1
        return before

    def since(self, row: int, count: int) -> list[Held]:
        """By layer, what a row has of the first ``count`` positions that came after the caches."""
        return [
            (
                layer.keys[row : row + 1, :, self._begin : self._begin + count],
                layer.values[row : row + 1, :, self._begin : self._begin + count],
            )
            for layer in self.layers
        ]


class BatchLayer:
    """The keys and values of a layer, in buffers that grow by `STEP` positions.

    Writing into a buffer costs the new position only, where concatenation would copy all the
    earlier ones for each token.

    Args:
        rows: (1, H, n, D) each: the last n positions that each sequence has read.
        padding: by how many positions each has read less than the longest.
        end: positions that the longest has read.
        window: positions that each can see before itself.

    Attributes:
        keys, values: (B, H, capacity, D).
    """

    def __init__(self, rows: Sequence[Held], padding: Sequence[int], end: int, window: int) -> None:
        self._end, self._window = end, window
        self._padding = mx.array(list(padding))[:, None, None, None]
        self._padded = max(padding)
        room = STEP - end % STEP
        self.keys, self.values = (
            mx.concatenate([_padded(row, end - row.shape[2], room) for row in arrays])
            for arrays in zip(*rows, strict=True)
        )

    def extend(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Append (B, H, 1, D) keys and values; returns all that the new position can see, and what
        hides those that shorter sequences do not have.
        """
        start, end = self._end, self._end + 1
        if start == self.keys.shape[2]:
            self.keys, self.values = (_padded(x, 0, STEP) for x in (self.keys, self.values))
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self._end = end
        begin, hidden = max(0, start - self._window), None
        if begin < self._padded:
            missing = mx.arange(begin, end) < self._padding  # (B, 1, 1, S)
            hidden = mx.where(missing, mx.array(UNSEEN, keys.dtype), mx.array(0, keys.dtype))
        return self.keys[:, :, begin:end], self.values[:, :, begin:end], hidden


def _padded(array: mx.array, before: int, after: int) -> mx.array:
    """(B, H, n, D) with so many more positions on both sides."""
    return mx.pad(array, [(0, 0), (0, 0), (before, after), (0, 0)])
