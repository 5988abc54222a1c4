"""A dataset as the trainer sees it: documents in an order that a cursor can resume."""

from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import ClassVar, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.corpus.documents import corpus_documents, document_text
from mlxchat.data.fingerprint import KnownShards
from mlxchat.data.shards import ShardSource
from mlxchat.errors import DataError
from mlxchat.tokenizer.messages import Document

BATCH = 128  # documents read, and tokenized, at a time
CHARACTERS_PER_TOKEN = 400  # of text for each token of a vocabulary, at least
LARGEST_VOCABULARY = 65_536  # nanochat's


class Cursor(NamedTuple):
    """The next document: ``epoch`` counts from 1, ``shard`` and ``row`` (in the shard) from 0."""

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
        """The files it consists of, in order; none where it is made up."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells those files from others of their names, as far as is known by now."""

    @property
    def conversational(self) -> bool:
        """Whether it is conversations, of which answers are learnt, and not text."""

    def training(self, start: Cursor) -> Iterator[Read]:
        """Training documents from a cursor on, without end."""

    def validation(self) -> Iterator[Read]:
        """Validation documents, once."""

    def close(self) -> None:
        """Stop whatever fetches; what reads meanwhile is interrupted."""


class TextDocuments(Documents, Protocol):
    """A dataset of text, that a tokenizer can learn from."""

    def texts(self) -> Iterator[str]:
        """Training text to learn a tokenizer from."""

    def suggested_vocabulary(self) -> int:
        """Tokens of a vocabulary that the text can support."""


class ShardDocuments:
    """Parquet shards, the last of them for validation.

    Args:
        source: where they come from.
        text_shards: how many to learn a tokenizer from; None for all.
        known: frames or fingerprints of shards (`KnownShards`); another one is an `MlxchatError`
            when it is to be read.
    """

    conversational = False

    def __init__(
        self,
        source: ShardSource,
        text_shards: int | None = None,
        known: Mapping[str, str] | None = None,
    ) -> None:
        self._source = KnownShards(source, known or {})
        self._text_shards = source.training[:text_shards]

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
        """Of the shards that were read; of others as much as was known."""
        return self._source.known

    def training(self, start: Cursor) -> Iterator[Read]:
        """Training documents from a cursor on, without end.

        Raises:
            MlxchatError: the cursor's shard is not part of the dataset, a shard cannot be read or
                is another one than was known, or there is not one document.
        """
        names = self._source.training
        epoch, shard, row = start
        if shard >= len(names):
            raise DataError(
                f"The run goes on at training shard {shard}, but there are only {len(names)}.",
                "Give it the data it began with.",
            )
        empty = -1 if row else 0  # shards without a document, one after another
        while empty < len(names):
            empty += 1
            for documents, after in _rows(self._source, names[shard], row):
                empty = 0
                yield documents, Cursor(epoch, shard, after)
            epoch, shard, row = epoch + (shard + 1) // len(names), (shard + 1) % len(names), 0
        raise DataError("The training shards hold no documents.", "Use data with text in it.")

    def validation(self) -> Iterator[Read]:
        """Documents of the validation shard, once."""
        for documents, after in _rows(self._source, self._source.validation, 0):
            yield documents, Cursor(1, 0, after)

    def texts(self) -> Iterator[str]:
        """Training text to learn a tokenizer from."""
        for name in self._text_shards:
            for documents, _ in _rows(self._source, name, 0):
                yield from (document_text(document) for document in documents)

    def suggested_vocabulary(self) -> int:
        """nanochat's 65,536 tokens; fewer, a power of two, for little text."""
        characters, enough = 0, LARGEST_VOCABULARY * CHARACTERS_PER_TOKEN
        for name in self._text_shards:
            if characters >= enough:
                break
            path = self._source.acquire(name)
            with pq.ParquetFile(path) as file:
                groups = range(file.num_row_groups)
                characters += sum(file.metadata.row_group(i).total_byte_size for i in groups)
            self._source.release(name)
        supported = max(512, characters // CHARACTERS_PER_TOKEN)
        return min(LARGEST_VOCABULARY, 1 << (supported.bit_length() - 1))

    def close(self) -> None:
        """Stop fetching, where shards are fetched."""
        self._source.close()


class BuiltinDocuments:
    """The built-in corpus as text: as many documents as one asks for."""

    shards = 1
    names = ()
    fingerprints: ClassVar[dict[str, str]] = {}
    conversational = False

    VALIDATION_SEED = 2**40  # above every seed a run may have
    VALIDATION_DOCUMENTS = 2048
    TEXTS = 8192

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def training(self, start: Cursor) -> Iterator[Read]:
        """Training documents from a cursor on, without end."""
        return self._batches(self._seed, start)

    def validation(self) -> Iterator[Read]:
        """A fixed number of documents that no run is trained on."""
        batches = self._batches(self.VALIDATION_SEED, Cursor())
        return islice(batches, self.VALIDATION_DOCUMENTS // BATCH)

    def texts(self) -> Iterator[str]:
        """The first documents."""
        return map(document_text, islice(corpus_documents(self._seed), self.TEXTS))

    def suggested_vocabulary(self) -> int:
        """Nearly a token a word."""
        return 1024

    def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def _batches(seed: int, start: Cursor) -> Iterator[Read]:
        documents = corpus_documents(seed, start.row)
        for row in count(start.row + BATCH, BATCH):
            batch: list[Document] = [*map(document_text, islice(documents, BATCH))]
            yield batch, Cursor(start.epoch, 0, row)


def _rows(source: ShardSource, name: str, start: int) -> Iterator[tuple[list[Document], int]]:
    """Documents of a shard from row ``start`` on, each batch with the row after it."""
    path = source.acquire(name)
    try:
        with pq.ParquetFile(path) as file:
            end = 0
            for group in range(file.num_row_groups):
                first, end = end, end + file.metadata.row_group(group).num_rows
                if end <= start:
                    continue
                texts = file.read_row_group(group, columns=["text"]).column("text").to_pylist()
                for row in range(max(start, first), end, BATCH):
                    after = min(row + BATCH, end)
                    batch = [text for text in texts[row - first : after - first] if text]
                    if batch:
                        yield batch, after
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({' '.join(str(error).split())}).",
            "Move it away and get it again: mlxchat data fetch",
        ) from error
    finally:
        source.release(name)
