"""Several sequences that a model extends together, a position at a time."""

from collections.abc import Sequence

from mlxchat.engine.cache import Cache, Held
from mlxchat.model.block import UNSEEN
from mlxchat.runtime import mx

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
