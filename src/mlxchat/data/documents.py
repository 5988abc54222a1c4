"""Datasets for the trainer: documents in an order that a cursor can resume."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import ClassVar, NamedTuple, Protocol

import pyarrow.parquet as pq

from mlxchat.data.corpus.documents import corpus_documents, document_text
from mlxchat.data.files import TEXT_COLUMN
from mlxchat.data.fingerprint import KnownShards
from mlxchat.data.parquet import parquet_rows, row_groups
from mlxchat.data.preparation import CROPPED_TEXT, Preparation
from mlxchat.data.shards import ShardSource
from mlxchat.data.text_files import Reading, failures_named
from mlxchat.errors import DataError
from mlxchat.tokenizer.messages import Document

BATCH = 128  # documents that are read and tokenized at a time
BATCH_CHARACTERS = 4_000_000  # after which a batch gets no more documents
HELD_ROWS = 65_536  # that are shuffled together, at most
HELD_CHARACTERS = 32_000_000  # after which no more rows are shuffled together
CHARACTERS_PER_TOKEN = 400  # least characters of text per token of a vocabulary
LARGEST_VOCABULARY = 65_536  # nanochat's
SHARDS_COUNTED = 3  # to estimate the size of a dataset; each is read whole, to be recognised


class Cursor(NamedTuple):
    """The position of the next document.

    Attributes:
        epoch: counts from 1.
        shard: the index of the training shard, from 0.
        row: the position in the epoch's order of the shard's rows, from 0.
    """

    epoch: int = 1
    shard: int = 0
    row: int = 0


Read = tuple[list[Document], Cursor]  # some documents, and the cursor after them


class Documents(Protocol):
    """A dataset."""

    @property
    def shards(self) -> int:
        """Training shards in an epoch."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its files, in order; empty if it is generated."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of its files, quick or full, as far as they are known, by name."""

    @property
    def conversational(self) -> bool:
        """Whether it has conversations instead of text, so that models of it answer."""

    @property
    def preparation(self) -> Preparation:
        """The way in which its documents become rows, unless the stage has its own."""

    def training(self, start: Cursor) -> Iterator[Read]:
        """Yield training documents from a cursor on, without end."""

    def validation(self) -> Iterator[Read]:
        """Yield the validation documents once."""

    def close(self) -> None:
        """Stop fetching; a concurrent reader is interrupted."""


class TextDocuments(Documents, Protocol):
    """A dataset of text, on which a tokenizer can be trained."""

    def texts(self) -> Iterator[str]:
        """Yield text to train a tokenizer on."""

    def suggested_vocabulary(self) -> int:
        """Return the size of a vocabulary that the text can support."""

    def text_bytes(self) -> float:
        """Return about how many bytes of text an epoch has; infinite if it never ends."""


class ShardDocuments:
    """Parquet shards, the last of them for validation.

    Args:
        source: the source of the shards.
        text_shards: the number of shards to train a tokenizer on; None for all.
        known: fingerprints of shards, quick or full; reading a different shard is an error
            (`KnownShards`).
        seed: the run's seed, which determines the order of each epoch after the first.
    """

    conversational = False
    preparation = CROPPED_TEXT

    def __init__(
        self,
        source: ShardSource,
        text_shards: int | None = None,
        known: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self._source = KnownShards(source, known or {})
        self._text_shards = source.training[:text_shards]
        self._seed = seed

    @property
    def shards(self) -> int:
        """Training shards in an epoch."""
        return len(self._source.training)

    @property
    def names(self) -> tuple[str, ...]:
        """The training shards, then the validation shard."""
        return (*self._source.training, self._source.validation)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the shards that were read, and what is known of others, by name."""
        return self._source.known

    def training(self, start: Cursor) -> Iterator[Read]:
        """Yield training documents from a cursor on, without end.

        The first epoch has the order of the files, each later one an order of its own: shards stay
        in order, their rows are shuffled.

        Raises:
            DataError: the cursor is beyond the dataset, a shard cannot be read or was replaced, or
                there are no documents.
        """
        names = self._source.training
        epoch, shard, row = start
        if shard >= len(names):
            raise DataError(
                f"The run resumes at training shard {shard}, but there are only {len(names)}.",
                "Resume with the data that the run started with.",
            )
        empty = -1 if row else 0  # consecutive shards without a document
        while empty < len(names):
            empty += 1
            order = f"{self._seed}/{epoch}/{shard}" if epoch > 1 else None
            for documents, after in _documents(self._source, names[shard], row, order):
                empty = 0
                yield documents, Cursor(epoch, shard, after)
            epoch, shard, row = epoch + (shard + 1) // len(names), (shard + 1) % len(names), 0
        raise DataError("The training shards contain no documents.", "Use data that contains text.")

    def validation(self) -> Iterator[Read]:
        """Yield the documents of the validation shard once."""
        for documents, after in _documents(self._source, self._source.validation):
            yield documents, Cursor(1, 0, after)

    def texts(self) -> Iterator[str]:
        """Yield text to train a tokenizer on."""
        for name in self._text_shards:
            for documents, _ in _documents(self._source, name):
                yield from (document_text(document) for document in documents)

    def suggested_vocabulary(self) -> int:
        """Return nanochat's 65,536 tokens, or a smaller power of two for little text."""
        characters, enough = 0, LARGEST_VOCABULARY * CHARACTERS_PER_TOKEN
        for name in self._text_shards:
            if characters >= enough:
                break
            characters += self._bytes_in(name)
        supported = max(512, characters // CHARACTERS_PER_TOKEN)
        return min(LARGEST_VOCABULARY, 1 << (supported.bit_length() - 1))

    def text_bytes(self) -> float:
        """Return about how many bytes of text an epoch has, by the first few shards.

        Repeated texts may be counted once. Infinity if the files do not say.
        """
        names = self._source.training
        counted = names[:SHARDS_COUNTED]
        size = sum(map(self._bytes_in, counted))
        return size * len(names) / len(counted) if size else math.inf

    def _bytes_in(self, name: str) -> int:
        path = self._source.acquire(name)
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            columns = [group.column(i) for group in groups for i in range(group.num_columns)]
            size: int = sum(
                column.total_uncompressed_size
                for column in columns
                if column.path_in_schema == "text"
            )
        self._source.release(name)
        return size

    def close(self) -> None:
        """Stop fetching shards."""
        self._source.close()


class BuiltinDocuments:
    """The built-in corpus as text: an endless dataset."""

    shards = 1
    names = ()
    fingerprints: ClassVar[dict[str, str]] = {}
    conversational = False
    preparation = CROPPED_TEXT

    VALIDATION_SEED = 2**40  # above every seed a run may have
    VALIDATION_DOCUMENTS = 2048
    TEXTS = 8192

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def training(self, start: Cursor) -> Iterator[Read]:
        """Yield training documents from a cursor on, without end."""
        return self._batches(self._seed, start)

    def validation(self) -> Iterator[Read]:
        """Yield a fixed number of documents that no run is trained on."""
        batches = self._batches(self.VALIDATION_SEED, Cursor())
        return islice(batches, self.VALIDATION_DOCUMENTS // BATCH)

    def texts(self) -> Iterator[str]:
        """Yield the text of the first documents."""
        return map(document_text, islice(corpus_documents(self._seed), self.TEXTS))

    def suggested_vocabulary(self) -> int:
        """Return 1024: almost one token per word."""
        return 1024

    def text_bytes(self) -> float:
        """Return infinity: no document comes twice."""
        return math.inf

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    @staticmethod
    def _batches(seed: int, start: Cursor) -> Iterator[Read]:
        documents = corpus_documents(seed, start.row)
        for row in count(start.row + BATCH, BATCH):
            batch: list[Document] = [*map(document_text, islice(documents, BATCH))]
            yield batch, Cursor(start.epoch, 0, row)


def _documents(
    source: ShardSource, name: str, start: int = 0, shuffle: str | None = None
) -> Iterator[tuple[list[Document], int]]:
    """Yield batches of a shard's documents from a place on, each with the place after it.

    A batch ends with a row group or with the rows shuffled together, or where its documents are
    long.

    Args:
        source: the source of the shard.
        name: its file name.
        start: the place of the first row, from 0.
        shuffle: the seed of the order of the rows; None for that of the file.
    """
    path = source.acquire(name)
    batch: list[Document] = []
    begin, characters = start, 0
    try:
        with failures_named(path):
            rows = _in_order(path, start) if shuffle is None else _shuffled(path, start, shuffle)
            for row in rows:
                if row.text:
                    batch.append(row.text)
                    characters += len(row.text)
                if row.is_last or row.after == begin + BATCH or characters >= BATCH_CHARACTERS:
                    if batch:
                        yield batch, row.after
                    batch, begin, characters = [], row.after, 0
    except DataError as error:
        raise DataError(
            error.problem, "Move it away and download it again: mlxchat data fetch"
        ) from error
    finally:
        source.release(name)


class _Row(NamedTuple):
    """A row of a shard: its text, empty if it has none, and its place.

    ``after`` is the place after it; ``is_last`` says whether it ends a row group, or the rows that
    are shuffled together.
    """

    text: str
    after: int
    is_last: bool


def _in_order(path: Path, start: int = 0, groups: Sequence[int] | None = None) -> Iterator[_Row]:
    """Yield the rows of some row groups of a shard from ``start`` on, at their places in the file.

    Raises:
        DataError: a text is not UTF-8, or as `parquet_rows`.
    """
    for row in parquet_rows(Reading(path), TEXT_COLUMN, start, groups):
        after, text = row.number + 1, row.values["text"]
        if isinstance(text, bytes):
            raise DataError(f"{path}, row {after} is not UTF-8.")
        yield _Row(text if isinstance(text, str) else "", after, after == row.group_end)


def _shuffled(path: Path, start: int, seed: str) -> Iterator[_Row]:
    """Yield the rows of a shard from place ``start`` on, in an order that depends on ``seed``.

    The row groups are shuffled, and the rows within each; of a group that is too large to be held
    in memory, some at a time. How depends only on the seed and on where they are in the file, so
    that no earlier row group need be read to resume.

    Raises:
        DataError: as `_in_order`.
    """
    sizes = row_groups(path)
    groups = list(range(len(sizes)))
    Random(seed).shuffle(groups)
    place = 0
    while groups and place + sizes[groups[0]] <= start:
        place += sizes[groups.pop(0)]
    held: list[str] = []
    characters = 0
    for row in _in_order(path, groups=groups):
        held.append(row.text)
        characters += len(row.text)
        if row.is_last or len(held) == HELD_ROWS or characters >= HELD_CHARACTERS:
            Random(f"{seed}/{row.after}").shuffle(held)
            for number, text in enumerate(held, start=1):
                if place + number > start:
                    yield _Row(text, place + number, number == len(held))
            place += len(held)
            held, characters = [], 0
