"""What a model has read: keys and values, so that every token is processed once."""

from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import Mask, mask
from mlxchat.runtime import mx

STEP = 256  # positions added when full; cuDNN decodes fast at multiples of it


class KVCache:
    """All keys and values of a layer, in buffers that grow by `STEP` positions.

    Writing into a buffer costs the new positions only, where concatenation would copy all the
    earlier ones for each token.

    Attributes:
        offset: positions held. It may be lowered: those that follow are forgotten.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._keys: mx.array | None = None  # (B, H, capacity, D)
        self._values: mx.array | None = None

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, Mask]:
        """Append (B, H, T, D) keys and values; returns views of all held, (B, H, offset, D)."""
        T = keys.shape[2]
        start, end = self.offset, self.offset + T
        self._keys = with_room(self._keys, keys, start, end)
        self._values = with_room(self._values, values, start, end)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.offset = end
        return *self.held(), mask(T, end, end, keys.dtype)

    def held(self) -> tuple[mx.array, mx.array]:
        """The keys and values of all positions, (B, H, offset, D), in their order."""
        assert self._keys is not None and self._values is not None
        return self._keys[:, :, : self.offset], self._values[:, :, : self.offset]

    def can_trim(self, length: int) -> bool:
        """Whether all that follows the first ``length`` positions can be forgotten."""
        return 0 <= length <= self.offset


class WindowCache:
    """The keys and values of a layer that sees ``window`` positions before each one.

    Position p lies in slot p modulo ``window + 1``: no more is held than one position can see.

    Attributes:
        offset: positions read. It may be lowered as far as `can_trim` allows.
    """

    def __init__(self, window: int) -> None:
        self.offset = 0
        self._window = window
        self._written = 0  # positions, those forgotten since included
        self._slots = window + 1
        self._keys: mx.array | None = None  # (B, H, slots, D)
        self._values: mx.array | None = None

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, Mask]:
        """Append (B, H, T, D) keys and values; returns all that the new positions can see.

        Where T is 1 that is all there is, in no order.
        """
        B, H, T, D = keys.shape
        if self._keys is None or self._values is None:
            self._keys, self._values = mx.zeros((2, B, H, self._slots, D), keys.dtype)
        start, end = self.offset, self.offset + T
        self._written = max(self._written, end) if start else end
        self.offset = end
        if T == 1:
            slot = start % self._slots
            self._keys[:, :, slot : slot + 1] = keys
            self._values[:, :, slot : slot + 1] = values
            return self._keys[:, :, :end], self._values[:, :, :end], None
        seen = mx.arange(max(0, start - self._window), start) % self._slots
        all_keys = mx.concatenate([self._keys[:, :, seen], keys], axis=2)
        all_values = mx.concatenate([self._values[:, :, seen], values], axis=2)
        kept = min(T, self._slots)
        slots = mx.arange(end - kept, end) % self._slots
        self._keys[:, :, slots] = keys[:, :, T - kept :]
        self._values[:, :, slots] = values[:, :, T - kept :]
        return all_keys, all_values, mask(T, all_keys.shape[2], self._window, keys.dtype)

    def held(self) -> tuple[mx.array, mx.array]:
        """The keys and values that the next position can see, (B, H, S, D), in their order."""
        assert self._keys is not None and self._values is not None
        seen = mx.arange(max(0, self.offset - self._window), self.offset) % self._slots
        return self._keys[:, :, seen], self._values[:, :, seen]

    def can_trim(self, length: int) -> bool:
        """Whether all that follows the first ``length`` positions can be forgotten.

        Only the last one written, where the slots have been filled: what those before it saw has
        been overwritten.
        """
        overwritten = self._written > self._slots
        return (self._written - 1 if overwritten else 0) <= length <= self.offset


class Cache:
    """The cache of a model: its layers', and the tokens read.

    Fulfils `mlxchat.model.gpt.Cache`.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.layers: list[KVCache | WindowCache] = [
            KVCache() if window >= config.sequence_len else WindowCache(window)
            for window in config.windows
        ]
        self._ids: list[mx.array] = []  # (B, T) each

    @property
    def offset(self) -> int:
        """Positions read by every layer."""
        return min(layer.offset for layer in self.layers)

    def read(self, ids: mx.array) -> mx.array | None:
        """Note (B, T) ids as read; returns the ones before them, (B, 1), None at the beginning."""
        before = self.latest
        self._ids.append(ids)
        return before

    @property
    def latest(self) -> mx.array | None:
        """The last ids read, (B, 1); None at the beginning."""
        return self._ids[-1][:, -1:] if self._ids else None

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
            layer.offset = length
        read, self._ids = self._ids, []
        for ids in read:
            if length > 0:
                self._ids.append(ids[:, :length])
            length -= ids.shape[1]


def with_room(buffer: mx.array | None, new: mx.array, start: int, end: int) -> mx.array:
    """``buffer``, enlarged where it cannot hold ``end`` positions; its first ``start`` are kept."""
    if buffer is not None and end <= buffer.shape[2]:
        return buffer
    B, H, _, D = new.shape
    capacity = -(-end // STEP) * STEP
    if buffer is None:
        return mx.zeros((B, H, capacity, D), new.dtype)
    empty = mx.zeros((B, H, capacity - start, D), new.dtype)
    return mx.concatenate([buffer[:, :, :start], empty], axis=2)
