"""Batches for training, each with the state from which loading resumes after it.

A thread reads, tokenizes and packs ahead, so that training does not wait. Every batch carries its
own state, so batches that were prepared but never trained on are simply prepared again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxchat.data.documents import Cursor, Read
from mlxchat.data.packing import Buffered, Tokens, unmask
from mlxchat.data.preparation import CROPPED_TEXT, Preparation
from mlxchat.tokenizer.bpe import Tokenizer

BATCHES_AHEAD = 8
WAIT_SECONDS = 0.1  # for a batch, before asking again whether to stop


class Stopped(Exception):  # noqa: N818  (not an error: somebody asked for it)
    """Raised when work was asked to stop before it was done."""


@dataclass(frozen=True)
class LoaderState:
    """All that the next batch depends on: the buffered documents, and the next one to read."""

    cursor: Cursor = field(default_factory=Cursor)
    buffered: tuple[Buffered, ...] = ()

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the state as arrays that a checkpoint can hold."""
        tokens = [document.tokens for document in self.buffered]
        return {
            "cursor": np.array(self.cursor, np.int64),
            "length": np.array([document.length for document in self.buffered], np.int64),
            "kept": np.array([len(kept) for kept in tokens], np.int64),
            "tokens": np.concatenate([*tokens, np.empty(0, np.int32)]).astype(np.int32),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> "LoaderState":
        """Return the state that `to_arrays` made these arrays of."""
        ends = np.cumsum(arrays["kept"])
        tokens = np.split(arrays["tokens"], ends)[:-1] if len(ends) else []
        # Documents of one length are in order of arrival, and only that order matters.
        documents = enumerate(zip(arrays["length"].tolist(), tokens, strict=True))
        buffered = tuple(Buffered(length, i, kept) for i, (length, kept) in documents)
        return cls(Cursor(*arrays["cursor"].tolist()), buffered)


@dataclass(frozen=True)
class Batch:
    """Token ids and, shifted by one, targets, both (B, T) int32; and the state after them.

    A target that is not to be learned is -1. With ``weights``, (B,), the loss of a step is the sum
    of all losses, each times the weight of its row; without, their mean.
    """

    ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    state: LoaderState
    weights: npt.NDArray[np.float32] | None = None


class Loader:
    """An iterator of batches. Close it, or use it in a ``with`` statement, to stop reading ahead.

    Args:
        documents: the documents from ``state``'s cursor on. The batches end when they do; the last
            one has the rows that are left.
        tokenizer: encodes the documents.
        device_batch_size: rows in a batch, B.
        sequence_len: tokens in a row, T, not counting the last target.
        state: where to resume; None for the beginning.
        stop: asked, while waiting for a batch, whether to give up.
        preparation: how rows are made of the documents.

    Iterating raises `Stopped` if ``stop`` says so, and any error of reading.
    """

    def __init__(
        self,
        documents: Iterator[Read],
        tokenizer: Tokenizer,
        device_batch_size: int,
        sequence_len: int,
        state: LoaderState | None = None,
        stop: Callable[[], bool] = lambda: False,
        preparation: Preparation = CROPPED_TEXT,
    ) -> None:
        self._documents, self._tokenizer, self._stop = documents, tokenizer, stop
        self._preparation = preparation
        self._shape = (device_batch_size, sequence_len + 1)
        self._batches = self._read(state or LoaderState())
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._ahead = deque(self._submit() for _ in range(BATCHES_AHEAD))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        following = self._ahead.popleft()
        while not wait([following], WAIT_SECONDS).done:
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
        """Stop reading ahead. A read under way ends by itself, or when its source closes."""
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
            return self._preparation.encode(self._tokenizer, batch, capacity)

        rows, capacity = self._shape
        packing = self._preparation.pack(self._tokenizer, capacity, refill, state.buffered)
        while True:
            packed: list[Tokens] = []
            while len(packed) < rows and (row := packing.row()) is not None:
                packed.append(row)
            if not packed:
                return
            ids, targets = unmask(np.stack(packed))
            after = LoaderState(cursor, packing.snapshot())
            yield Batch(ids[:, :-1], targets[:, 1:], after)


def first_rows(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Yield the first ``rows`` rows of some batches, cutting the last batch."""
    for batch in batches:
        yield Batch(batch.ids[:rows], batch.targets[:rows], batch.state)
        rows -= len(batch.ids)
        if rows <= 0:
            return
