"""The keys and values of what a model has read, so that every token is processed only once.

`KVCache` is the cache of one or more sequences of one length, read in pieces of any length.
`BatchCache` joins the caches of several sequences of different lengths, to be extended together one
position at a time. Both fulfil `mlxchat.model.gpt.Cache`.
"""

from collections.abc import Sequence

from mlxchat.model.block import UNSEEN
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx

KeysAndValues = tuple[mx.array, mx.array]
"""Keys and values of a layer, (B, H, S, D) each."""

STEP = 256  # buffers grow by this many positions; cuDNN decodes fast at multiples of it


class KVCache:
    """The cache of a model: a cache for each layer, and the tokens read."""

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [KVLayer(window) for window in config.windows]
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
    """The keys and values of one layer, in buffers that grow by `STEP` positions.

    Writing into a buffer costs the new positions only, where concatenation would copy all the
    earlier ones for each token. A layer with a window drops the positions that no new one can see
    whenever its buffers are full.

    Args:
        window: positions that each position can see before itself.

    Attributes:
        offset: positions read.
    """

    def __init__(self, window: int) -> None:
        self.offset = 0
        self._window = window
        self._buffers: KeysAndValues | None = None  # (B, H, capacity, D)
        self._end = 0  # positions in the buffers: the last ones read

    @property
    def visible(self) -> KeysAndValues:
        """Keys and values that the next position can see: at most ``window`` positions, in order.

        There must be at least one.
        """
        assert self._buffers is not None
        keys, values = self._buffers
        begin = max(0, self._end - self._window)
        return keys[:, :, begin : self._end], values[:, :, begin : self._end]

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, None]:
        """Append (B, H, T, D) keys and values; returns all that the new positions can see."""
        T, start, buffers = keys.shape[2], self._end, self._buffers
        if buffers is None:
            end = min(T, self._window + 1)
            buffers = self._with_room((keys, values), T, 0)
            seen = keys, values
        else:
            if start + T > buffers[0].shape[2]:
                buffers = self._with_room(buffers, start, T)
                start = min(start, self._window + 1)
            begin, end = max(0, start - self._window), start + T
            for buffer, new in zip(buffers, (keys, values), strict=True):
                buffer[:, :, start:end] = new
            seen = buffers[0][:, :, begin:end], buffers[1][:, :, begin:end]
        # Only now, and without a call in between: Ctrl-C may come at any moment.
        self._buffers, self._end, self.offset = buffers, end, self.offset + T
        return *seen, None

    def _with_room(self, buffers: KeysAndValues, end: int, T: int) -> KeysAndValues:
        """Copy what is kept of the first ``end`` positions to buffers with room for T more.

        One position more than the window is kept, so that the last one read can be trimmed.
        """
        kept = min(end, self._window + 1)
        room = T + STEP - (kept + T) % STEP
        keys, values = (_padded(x[:, :, end - kept : end], 0, room) for x in buffers)
        return keys, values

    def can_trim(self, length: int) -> bool:
        """Return whether the layer still holds what position number ``length`` can see."""
        dropped = self.offset - self._end
        return 0 <= length <= self.offset and (dropped == 0 or length - dropped >= self._window)

    def trim(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""
        self._end = max(0, self._end - (self.offset - length))
        self.offset = length
        if length == 0:
            self._buffers, self._end = None, 0


class BatchCache:
    """The cache of B sequences that are extended together, one position at a time.

    It is aligned at its end, so that a new position lies in the same place for all sequences; each
    sequence counts its own positions.

    Args:
        caches: caches of batch size 1, each with at least one position; they do not change. One may
            occur several times: the samples that continue one prompt share its prefill.
        windows: the windows of the layers.

    Attributes:
        offset: positions read by each sequence, (B,).
    """

    def __init__(self, caches: Sequence[KVCache], windows: Sequence[int]) -> None:
        lengths = [cache.offset for cache in caches]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        self.offset = mx.array(lengths)
        latest = [ids for ids in (cache.latest for cache in caches) if ids is not None]
        self._latest = mx.concatenate(latest)  # (B, 1)
        layers = zip(*(cache.layers for cache in caches), windows, strict=True)
        self.layers = [
            BatchLayer([row.visible for row in rows], padding, longest, window)
            for *rows, window in layers
        ]

    def record(self, ids: mx.array) -> mx.array:
        """Record that (B, 1) ids are read; returns the ids before them, (B, 1).

        Raises:
            ValueError: there is more than one position.
        """
        if ids.shape[1] != 1:
            raise ValueError(f"a batch is extended by one position, not {ids.shape[1]}")
        before, self._latest = self._latest, ids
        self.offset = self.offset + 1
        return before


class BatchLayer:
    """The keys and values of one layer for B sequences, in buffers that grow by `STEP` positions.

    Args:
        rows: keys and values of each sequence, (1, H, n, D): of the last n positions it has read.
        padding: for each sequence, by how many positions it is shorter than the longest.
        end: positions that the longest sequence has read.
        window: positions that each position can see before itself.
    """

    def __init__(
        self, rows: Sequence[KeysAndValues], padding: Sequence[int], end: int, window: int
    ) -> None:
        self._end, self._window = end, window
        self._padding = mx.array(list(padding))[:, None, None, None]
        self._padded = max(padding)
        room = STEP - end % STEP
        self._keys, self._values = (  # (B, H, capacity, D)
            mx.concatenate([_padded(row, end - row.shape[2], room) for row in arrays])
            for arrays in zip(*rows, strict=True)
        )

    def extend(
        self, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """Append (B, H, 1, D) keys and values.

        Returns:
            Keys and values of all that the new position can see, and the mask that hides the
            positions that shorter sequences do not have, if there are any.
        """
        start, end = self._end, self._end + 1
        if start == self._keys.shape[2]:
            self._keys, self._values = (_padded(x, 0, STEP) for x in (self._keys, self._values))
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self._end = end
        begin, hidden = max(0, start - self._window), None
        if begin < self._padded:
            missing = mx.arange(begin, end) < self._padding  # (B, 1, 1, S)
            hidden = mx.where(missing, mx.array(UNSEEN, keys.dtype), mx.array(0, keys.dtype))
        return self._keys[:, :, begin:end], self._values[:, :, begin:end], hidden


def _padded(array: mx.array, before: int, after: int) -> mx.array:
    """Pad (B, H, n, D) by so many positions on both sides."""
    return mx.pad(array, [(0, 0), (0, 0), (before, after), (0, 0)])
