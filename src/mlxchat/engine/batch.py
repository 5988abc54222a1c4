"""Several sequences decoded together: their caches joined into one, a token at a time for each."""

from collections.abc import Sequence

from mlxchat.engine.cache import Cache, KVCache, WindowCache, with_room
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import UNSEEN, Mask
from mlxchat.runtime import mx


class BatchCache:
    """The caches of B sequences as the rows of one; it can be extended by single positions.

    Each row keeps its own positions. What is held is aligned at the end, so that a position is
    written to the same place in every row. Fulfils `mlxchat.model.gpt.Cache`.

    Args:
        config: of the model.
        caches: of batch size 1, with a position at least. One may occur several times: the
            samples that continue one prompt share its prefill.
    """

    def __init__(self, config: GPTConfig, caches: Sequence[Cache]) -> None:
        self.offset = mx.array([cache.offset for cache in caches])
        latest = [ids for ids in (cache.latest for cache in caches) if ids is not None]
        self._latest = mx.concatenate(latest)  # (B, 1)
        rows = zip(*(cache.layers for cache in caches), strict=True)
        self.layers = [
            JoinedLayer(layers, window) for layers, window in zip(rows, config.windows, strict=True)
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


class JoinedLayer:
    """The keys and values of a layer for every row, aligned at their end."""

    def __init__(self, rows: Sequence[KVCache | WindowCache], window: int) -> None:
        held = [row.held() for row in rows]
        lengths = [keys.shape[2] for keys, _ in held]
        self._window = window
        self._end = max(lengths)
        self._padding = mx.array([self._end - length for length in lengths])[:, None, None, None]
        self._padded = self._end - min(lengths)  # positions that not every row holds
        self._keys = self._joined([keys for keys, _ in held])
        self._values = self._joined([values for _, values in held])

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, Mask]:
        """Append (B, H, 1, D) keys and values; returns all that the new position can see."""
        start, end = self._end, self._end + 1
        self._keys = with_room(self._keys, keys, start, end)
        self._values = with_room(self._values, values, start, end)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self._end = end
        begin = max(0, start - self._window)
        hidden: Mask = None
        if begin < self._padded:
            padding = mx.arange(begin, end) < self._padding  # (B, 1, 1, S)
            hidden = mx.where(padding, mx.array(UNSEEN, keys.dtype), mx.array(0, keys.dtype))
        return self._keys[:, :, begin:end], self._values[:, :, begin:end], hidden

    def _joined(self, held: Sequence[mx.array]) -> mx.array:
        none = (0, 0)
        return mx.concatenate(
            [mx.pad(row, [none, none, (self._end - row.shape[2], 0), none]) for row in held]
        )
