"""What a model has read: keys and values, so that every token is processed once."""

from collections.abc import Sequence

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
