"""What models have read, by its tokens: what two prompts share is read once.

Each turn of a conversation begins with all the turns before it, and the conversations of a program
with its system prompt. The keys and values of what was read are kept, the latest used longest, and
a prompt continues those with which it shares the longest beginning.

Every conversation begins with the same few special tokens, so that what two prompts share counts
only from so many tokens on.
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


class Prefixes:
    """Keys and values of sequences of tokens, within a number of bytes and of sequences.

    All entries are compared with a prompt one by one, on the thread that owns the model. Each takes
    microseconds, so that there are `MOST_KEPT` at most, however small they are.

    Args:
        limit: bytes of keys and values; 0 keeps none.
        fewest: the number of tokens from which a common beginning counts, and is kept.

    Attributes:
        limit: these bytes.
        size: bytes that are kept.
    """

    def __init__(self, limit: int, fewest: int = FEWEST_SHARED) -> None:
        self.size = 0
        self.limit = limit
        self._fewest = fewest
        self._entries: list[_Entry] = []  # the one that was used last is the last

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, ids: Sequence[int]) -> tuple[int, Past]:
        """Return how many of the first tokens an entry shares with ``ids``, and its past.

        The last of ``ids`` does not count: it is always read, for the logits after it. The past may
        be longer than what is shared.
        """
        prompt, best, shared = np.array(ids[:-1]), -1, self._fewest - 1
        for n, entry in enumerate(self._entries):
            common = _common(entry.ids, prompt)
            if common > shared:
                best, shared = n, common
        if best < 0:
            return 0, []
        entry = self._entries.pop(best)
        self._entries.append(entry)
        return shared, entry.past

    def keep(self, ids: Sequence[int], past: Past) -> None:
        """Keep the past of these tokens, if it fits, in place of those of their beginnings.

        Nothing is kept if an entry begins with these tokens. Those that were not used for longest
        make room.
        """
        new, size = np.array(ids), sum(array.nbytes for array in past)
        if size > self.limit or len(new) < self._fewest:
            return
        if any(_common(e.ids, new) == len(new) for e in self._entries):
            return
        kept = [entry for entry in self._entries if _common(entry.ids, new) < len(entry.ids)]
        self._entries = [*kept, _Entry(new, past, size)]
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
