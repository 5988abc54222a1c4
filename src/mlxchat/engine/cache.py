"""The keys and values of what a model has read, so that every token is processed once."""

from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

STEP = 256  # positions added when full; cuDNN decodes fast at multiples of it


class KVCache:
    """One layer's keys and values in buffers that grow by `STEP` positions.

    Fulfils `mlxchat.model.gpt.LayerCache`. Writing into a buffer costs the new positions only,
    where concatenation would copy all the earlier ones for each token.
    """

    def __init__(self) -> None:
        self._keys: mx.array | None = None  # (B, H, capacity, D)
        self._values: mx.array | None = None
        self._offset = 0

    @property
    def offset(self) -> int:
        """Positions held."""
        return self._offset

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append (B, H, T, D) keys and values; returns views of all held, (B, H, offset, D)."""
        start, end = self._offset, self._offset + keys.shape[2]
        self._keys = _with_room(self._keys, keys, start, end)
        self._values = _with_room(self._values, values, start, end)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self._offset = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def trim(self, length: int) -> None:
        """Forget all but the first ``length`` positions.

        Raises:
            ValueError: fewer positions than ``length`` are held.
        """
        if not 0 <= length <= self._offset:
            raise ValueError(f"cannot trim a cache of {self._offset} positions to {length}")
        self._offset = length


def _with_room(buffer: mx.array | None, new: mx.array, start: int, end: int) -> mx.array:
    """``buffer``, enlarged where it cannot hold ``end`` positions; its first ``start`` are kept."""
    if buffer is not None and end <= buffer.shape[2]:
        return buffer
    B, H, _, D = new.shape
    capacity = -(-end // STEP) * STEP
    if buffer is None:
        return mx.zeros((B, H, capacity, D), new.dtype)
    empty = mx.zeros((B, H, capacity - start, D), new.dtype)
    return mx.concatenate([buffer[:, :, :start], empty], axis=2)


def make_cache(model: GPT) -> list[KVCache]:
    """An empty cache for every layer of ``model``."""
    return [KVCache() for _ in range(model.config.n_layer)]
