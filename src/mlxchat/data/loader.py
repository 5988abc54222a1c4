"""Batches for training, each with the state that resumes after it.

A thread reads, tokenizes and packs ahead, so that training does not wait; since every batch carries
its own state, what was read ahead and never trained on is simply read again.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxchat.data.documents import Cursor, Read
from mlxchat.data.packing import BestFit, Buffered, Tokens
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Document

BUFFER_DOCUMENTS = 1000  # nanochat's
BUFFER_CONVERSATIONS = 100  # nanochat's
BATCHES_AHEAD = 8
POLL_SECONDS = 0.1  # between two looks at whether to stop waiting
TOKENIZER_THREADS = min(4, os.cpu_count() or 1)


class Stopped(Exception):  # noqa: N818  (not an error: somebody asked for it)
    """Work was asked to stop before it was done."""


@dataclass(frozen=True)
class LoaderState:
    """What the next batch depends on: the documents held, and the next one to read."""

    cursor: Cursor = field(default_factory=Cursor)
    buffered: tuple[Buffered, ...] = ()

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state as arrays that a checkpoint can hold."""
        tokens = [document.tokens for document in self.buffered]
        return {
            "cursor": np.array(self.cursor, np.int64),
            "length": np.array([document.length for document in self.buffered], np.int64),
            "kept": np.array([len(kept) for kept in tokens], np.int64),
            "tokens": np.concatenate([*tokens, np.empty(0, np.int32)]).astype(np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> "LoaderState":
        """The inverse of `to_arrays`."""
        ends = np.cumsum(arrays["kept"])
        tokens = np.split(arrays["tokens"], ends)[:-1] if len(ends) else []
        # Those of one length are in order of arrival, and nothing else of it matters.
        held = enumerate(zip(arrays["length"].tolist(), tokens, strict=True))
        buffered = tuple(Buffered(length, i, kept) for i, (length, kept) in held)
        return cls(Cursor(*arrays["cursor"].tolist()), buffered)


@dataclass(frozen=True)
class Batch:
    """Token ids and, one place later, targets, both (B, T) int32; the state after them.

    A target that nothing is to be learnt from is -1.
    """

    ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    state: LoaderState


class Loader:
    """An iterator of batches. Close it, or leave it in a ``with``, to stop reading ahead.

    Args:
        documents: read from ``state``'s cursor on; where they end, so do the batches, the last one
            with the rows that there are.
        tokenizer: that encodes them.
        batch_size: rows, B.
        sequence_len: tokens of a row, T, the last target not counted.
        state: what was held there.
        stop: asked while a batch is waited for: give up?
        answers_only: the documents are conversations. They are kept whole, in padded rows, and only
            what the assistant says is a target.

    Iterating raises `Stopped` where ``stop`` says so, and whatever reading raised.
    """

    def __init__(
        self,
        documents: Iterator[Read],
        tokenizer: Tokenizer,
        batch_size: int,
        sequence_len: int,
        state: LoaderState | None = None,
        stop: Callable[[], bool] = lambda: False,
        answers_only: bool = False,
    ) -> None:
        self._documents, self._tokenizer, self._stop = documents, tokenizer, stop
        self._answers_only = answers_only
        self._shape = (batch_size, sequence_len + 1)
        self._batches = self._read(state or LoaderState())
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead = deque(self._submit() for _ in range(BATCHES_AHEAD))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        following = self._ahead.popleft()
        while not wait([following], POLL_SECONDS).done:
            if self._stop():
                raise Stopped
        batch = following.result()
        if batch is None:
            self.close()
            raise StopIteration
        self._ahead.append(self._submit())
        return batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no further. What is being read now ends by itself, or when its source closes."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> Future[Batch | None]:
        return self._executor.submit(next, self._batches, None)

    def _read(self, state: LoaderState) -> Iterator[Batch]:
        cursor = state.cursor

        def refill() -> list[list[int]] | None:
            nonlocal cursor
            following = next(self._documents, None)
            if following is None:
                return None
            batch, cursor = following
            return self._encoded(batch)

        rows, capacity = self._shape
        size, padding = BUFFER_DOCUMENTS, None
        if self._answers_only:
            size, padding = BUFFER_CONVERSATIONS, ~self._tokenizer.bos
        packing = BestFit(capacity, size, refill, state.buffered, padding)
        while True:
            packed: list[Tokens] = []
            while len(packed) < rows and (row := packing.row()) is not None:
                packed.append(row)
            if not packed:
                return
            batch = np.stack(packed)
            ids, targets = np.maximum(batch, ~batch), np.maximum(batch, -1)
            after = LoaderState(cursor, packing.snapshot())
            yield Batch(ids[:, :-1], targets[:, 1:], after)

    def _encoded(self, documents: list[Document]) -> list[list[int]]:
        if self._answers_only:
            return answered(self._tokenizer, documents, self._shape[1])
        return self._tokenizer.encode_documents(documents, TOKENIZER_THREADS)


def first_rows(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """So many rows, however many a batch has; the last batch is cut."""
    for batch in batches:
        yield Batch(batch.ids[:rows], batch.targets[:rows], batch.state)
        rows -= len(batch.ids)
        if rows <= 0:
            return


def answered(tokenizer: Tokenizer, documents: list[Document], capacity: int) -> list[list[int]]:
    """Ids of each conversation that a row of ``capacity`` holds an answer of, or part of one; of a
    token that is not to be learnt, the complement, ``~id``.
    """
    rendered = (tokenizer.render(c) for c in documents if isinstance(c, Conversation))
    return [
        [token if learnt else ~token for token, learnt in zip(ids, mask, strict=True)]
        for ids, mask in rendered
        if any(mask[:capacity])
    ]
