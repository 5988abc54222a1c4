"""Packing documents into rows by best fit, as nanochat's loaders do. Pure.

Each row is filled with the largest buffered document that still fits, again and again. When none
fits, the rest of the row is filled with the beginning of the shortest document, whose remainder is
dropped; or it is padded, and only a document longer than a row is ever cut. So every row begins
with the beginning of a document.

Where rows are short or text is scarce, that drops much of it. Remainders can be kept instead: then
a row may begin in the middle of a document, and every token is used.

Tokens that are not to be learned, such as a user's words and padding, are masked: they pass through
the buffer, and through the checkpoints that hold it, as their complement, which is negative.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


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


class BestFit:
    """A buffer of documents, and the rows packed from it.

    Args:
        capacity: tokens in a row.
        size: documents to buffer before one is chosen.
        refill: returns the next documents; None when there are no more, after which rows are
            packed from those that are left.
        documents: the documents in an earlier `snapshot`.
        padding: the token that fills a row where no document fits; None to cut one instead.
        whole: keep the remainders of documents that are cut, as documents of their own.
    """

    def __init__(
        self,
        capacity: int,
        size: int,
        refill: Callable[[], Iterable[list[int]] | None],
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
