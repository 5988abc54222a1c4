"""Packing documents into rows, as nanochat's loaders do. Pure.

By best fit, each row is filled with the largest buffered document that still fits, again and
again. When none fits, the rest of the row is filled with the beginning of the shortest document,
whose remainder is dropped; or it is padded, and only a document longer than a row is ever cut. So
every row begins with the beginning of a document.

Where rows are short or text is scarce, that drops much of it. Remainders can be kept instead: then
a row may begin in the middle of a document, and every token is used. `EndToEnd` keeps every token
too, and the order: rows are cut from one long text, as in nanochat's first versions.

Tokens that are not to be learned, such as a user's words and padding, are masked: they pass through
the buffer, and through the checkpoints that hold it, as their complement, which is negative.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Refill = Callable[[], Iterable[list[int]] | None]
"""Returns the next documents; None when there are no more."""


def mask(token: int) -> int:
    """Return the form in which a token that is not to be learned is packed."""
    return ~token


def unmask(packed: Tokens) -> tuple[Tokens, Tokens]:
    """Return what packed tokens stand for: their ids, and the same as targets, -1 where masked."""
    return np.maximum(packed, ~packed), np.maximum(packed, -1)


class Buffered(NamedTuple):
    """A document waiting for its row.

    Only as many tokens are kept as fit into a row; ``length``, by which a document is chosen, is
    that of the whole document, or if rows are padded or remainders kept that of the tokens kept.
    """

    length: int
    arrival: int
    tokens: Tokens


class Rows(Protocol):
    """Rows that are packed from documents, one after another."""

    def row(self) -> Tokens | None:
        """Return the next row, (capacity,); None when the documents left do not fill one."""

    def snapshot(self) -> tuple[Buffered, ...]:
        """Return the buffered documents: with them and the same refills, the same rows follow."""


class BestFit:
    """A buffer of documents, and the rows packed from it.

    Args:
        capacity: tokens in a row.
        size: documents to buffer before one is chosen.
        refill: the source of documents; after the last, rows are packed from those that are left.
        documents: the documents in an earlier `snapshot`.
        padding: the token that fills a row where no document fits; None to cut one instead.
        whole: keep the remainders of documents that are cut, as documents of their own.
    """

    def __init__(
        self,
        capacity: int,
        size: int,
        refill: Refill,
        documents: Iterable[Buffered] = (),
        padding: int | None = None,
        whole: bool = False,
    ) -> None:
        self.capacity = capacity
        self._padding, self._whole = padding, whole
        self._size = size
        self._refill = refill
        self._documents = sorted(documents, key=lambda document: document[:2])  # by length, arrival
        self._arrivals = 1 + max((document.arrival for document in self._documents), default=-1)
        self._exhausted = False

    def row(self) -> Tokens | None:
        """Return the next row, (capacity,); None when the documents left do not fill one."""
        row = np.empty(self.capacity, np.int32)
        position = 0
        while position < self.capacity:
            self._fill()
            room = self.capacity - position
            if self._padding is not None and position and not self._fits(room):
                row[position:] = self._padding
                break
            if not self._documents:
                return None
            tokens = self._take(room)
            row[position : position + len(tokens)] = tokens
            position += len(tokens)
        return row

    def snapshot(self) -> tuple[Buffered, ...]:
        """Return the buffered documents: with them and the same refills, the same rows follow."""
        return tuple(self._documents)

    def _fill(self) -> None:
        while len(self._documents) < self._size and not self._exhausted:
            documents = self._refill()
            self._exhausted = documents is None
            for ids in self._pieces(documents or ()):
                tokens = np.array(ids[: self.capacity], np.int32)
                self._add(tokens, len(ids) if self._padding is None else len(tokens))

    def _pieces(self, documents: Iterable[list[int]]) -> Iterable[list[int]]:
        """Cut documents into pieces that fit into a row, if they are to be kept whole.

        The first pieces of all come first, then the second ones: rows that follow each other, and
        are learned from in one step, are of different documents.
        """
        if not self._whole:
            return documents
        size = self.capacity
        cut = ([ids[i : i + size] for i in range(0, len(ids), size)] for ids in documents)
        return [piece for pieces in zip_longest(*cut) for piece in pieces if piece]

    def _add(self, tokens: Tokens, length: int) -> None:
        document = Buffered(length, self._arrivals, tokens)
        insort(self._documents, document, key=lambda other: other[:2])
        self._arrivals += 1

    def _fits(self, room: int) -> bool:
        return bool(self._documents) and self._documents[0].length <= room

    def _take(self, room: int) -> Tokens:
        """Remove the largest document that fits, the oldest of its length; else the shortest."""
        fitting = bisect_right(self._documents, room, key=lambda document: document.length)
        if fitting == 0:
            tokens = self._documents.pop(0).tokens
            if self._whole:
                self._add(tokens[room:], len(tokens) - room)
            return tokens[:room]
        length = self._documents[fitting - 1].length
        oldest = bisect_left(self._documents, length, key=lambda document: document.length)
        return self._documents.pop(oldest).tokens


class EndToEnd:
    """Rows that follow each other without gaps: each begins where the one before it ended.

    Args:
        capacity: tokens in a row.
        refill: the source of documents.
        documents: the documents in an earlier `snapshot`; the first may be the rest of one.
        padding: the token that fills the very last row, after the end of all documents.
    """

    def __init__(
        self, capacity: int, refill: Refill, documents: Iterable[Buffered], padding: int
    ) -> None:
        self.capacity = capacity
        self._refill, self._padding = refill, padding
        self._left = deque(document.tokens for document in documents)

    def row(self) -> Tokens | None:
        """Return the next row, (capacity,); None after the last."""
        row = np.full(self.capacity, self._padding, np.int32)
        position = 0
        while position < self.capacity and self._has_more():
            tokens = self._left.popleft()
            part = tokens[: self.capacity - position]
            row[position : position + len(part)] = part
            position += len(part)
            if len(part) < len(tokens):
                self._left.appendleft(tokens[len(part) :])
        return row if position else None

    def snapshot(self) -> tuple[Buffered, ...]:
        """Return what has been read and is in no row yet."""
        left = enumerate(self._left)
        return tuple(Buffered(len(tokens), arrival, tokens) for arrival, tokens in left)

    def _has_more(self) -> bool:
        """Read on if nothing is left; return whether anything is left then."""
        while not self._left:
            documents = self._refill()
            if documents is None:
                return False
            self._left.extend(np.array(ids, np.int32) for ids in documents)
        return True
