"""The prompt cache: keys and values by token, so that a beginning shared by prompts is read once.

Each turn of a conversation begins with all the turns before it, and a program's conversations begin
with its system prompt. Keys and values are kept in order of last use, and a prompt continues from
the entry with which it shares the longest beginning. Adapters of one model compute different keys
and values from the same tokens, so each adapter only uses its own.

Every conversation begins with the same few special tokens, so a shared beginning only counts from a
minimum length on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlxchat.engine.rows import Past

MOST_KEPT = 64
FEWEST_SHARED = 16


class _Entry(NamedTuple):
    ids: np.ndarray
    past: Past
    size: int  # in bytes
    adapter: str | None


class Prefixes:
    """Keys and values of token sequences, limited in bytes and in number.

    A prompt is compared with all entries one by one, on the thread that owns the model. Each takes
    microseconds, so there are at most `MOST_KEPT` entries, however small they are.

    Args:
        limit: bytes of keys and values; 0 keeps none.
        fewest: the minimum length in tokens of a shared beginning, and of an entry.

    Attributes:
        limit: the argument.
        size: the number of bytes currently kept.
    """

    def __init__(self, limit: int, fewest: int = FEWEST_SHARED) -> None:
        self.size = 0
        self.limit = limit
        self._fewest = fewest
        self._entries: list[_Entry] = []  # the one that was used last is the last

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, ids: Sequence[int], adapter: str | None = None) -> tuple[int, Past]:
        """Return how many of the first tokens an entry shares with ``ids``, and its past.

        The last of ``ids`` does not count: it is always read, for the logits after it. The past may
        be longer than what is shared.

        Args:
            ids: the prompt.
            adapter: the one that reads it; None for the model without any.
        """
        prompt, best, shared = np.array(ids[:-1]), -1, self._fewest - 1
        for n, entry in enumerate(self._entries):
            common = _common(entry.ids, prompt) if entry.adapter == adapter else 0
            if common > shared:
                best, shared = n, common
        if best < 0:
            return 0, []
        entry = self._entries.pop(best)
        self._entries.append(entry)
        return shared, entry.past

    def keep(self, ids: Sequence[int], past: Past, adapter: str | None = None) -> None:
        """Keep what an adapter has read of these tokens, in place of their beginnings, if it fits.

        Nothing is kept if an entry begins with these tokens. Those that were not used for longest
        make room.
        """
        new, size = np.array(ids), sum(array.nbytes for array in past)
        if size > self.limit or len(new) < self._fewest:
            return
        own = [entry for entry in self._entries if entry.adapter == adapter]
        if any(_common(entry.ids, new) == len(new) for entry in own):
            return
        continued = {id(entry) for entry in own if _common(entry.ids, new) == len(entry.ids)}
        kept = [entry for entry in self._entries if id(entry) not in continued]
        self._entries = [*kept, _Entry(new, past, size, adapter)]
        self.size = sum(entry.size for entry in self._entries)
        while self.size > self.limit or len(self._entries) > MOST_KEPT:
            self.size -= self._entries.pop(0).size

    def clear(self) -> None:
        """Forget everything."""
        self._entries, self.size = [], 0


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the beginning that two sequences share."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
