"""The user's own text files, made into shards in nanochat's layout.

Text files are cut at blank lines into documents of at most `LONGEST_DOCUMENT` characters, because
packing drops the rest of a document that is longer than a row. Each line of a .jsonl file and each
row of a .parquet file is one document. About one document in twenty, chosen at random, becomes
validation.
"""

import codecs
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.shards import shard_fault, shard_name, shard_names
from mlxchat.disk import UNFINISHED, Lock, new_folder, storing, sync
from mlxchat.errors import DataError, DiskError, MlxchatError, NotFound
from mlxchat.json_text import parse_json
from mlxchat.telemetry.events import Noted, Progressed, Report

LONGEST_DOCUMENT = 8_000  # characters
ROWS_READ = 1024  # rows of a parquet file that are read at a time
LINE_PIECE = 2**16  # longer lines are read in pieces of this size
LONGEST_REASON = 200  # characters of pyarrow's error message

Advance = Callable[[int], None]  # called with the number of bytes read


def read_documents(path: Path, advance: Advance) -> Iterator[str]:
    """Yield the documents of a file, without those that are only white space.

    Raises:
        DataError: the file cannot be read or decoded; the line is named.
    """
    try:
        for text in READERS[path.suffix.lower()](path, advance):
            if text.strip():
                yield text
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the file."
        ) from error


def _read_text(path: Path, advance: Advance) -> Iterator[str]:
    """Yield documents of as many whole paragraphs as fit."""
    document = ""
    for paragraph in _paragraphs(_text_pieces(path, advance)):
        if document and len(document) + 2 + len(paragraph) > LONGEST_DOCUMENT:
            yield document
            document = ""
        document = f"{document}\n\n{paragraph}" if document else paragraph
    yield document


def _paragraphs(pieces: Iterable[str]) -> Iterator[str]:
    """Yield runs of lines without a blank line, cut to the length of a document."""
    paragraph = ""
    for piece in pieces:
        paragraph += piece
        while len(paragraph) > LONGEST_DOCUMENT:
            end = _cut(paragraph)
            yield paragraph[:end].rstrip()
            paragraph = paragraph[end:].lstrip("\n")
        if not piece.strip():
            if paragraph.strip():
                yield paragraph.rstrip()
            paragraph = ""
    if paragraph.strip():
        yield paragraph.rstrip()


def _cut(text: str) -> int:
    """Return where to cut ``text``: after the last line, sentence or word that fits."""
    for separator in ("\n", ". ", " "):
        end = text.rfind(separator, LONGEST_DOCUMENT // 2, LONGEST_DOCUMENT)
        if end > 0:
            return end + len(separator)
    return LONGEST_DOCUMENT


def _text_pieces(path: Path, advance: Advance) -> Iterator[str]:
    """Yield the lines of a UTF-8 file; longer ones than `LINE_PIECE` in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 1
    with path.open("rb") as stream:
        while True:
            raw = stream.readline(LINE_PIECE)
            try:
                piece = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number) from error
            if not raw:
                return
            advance(len(raw))
            number += raw.endswith(b"\n")
            yield piece.replace("\r\n", "\n")


def _read_json_lines(path: Path, advance: Advance) -> Iterator[str]:
    """Yield the ``text`` of the JSON object in each line."""
    remedy = 'Each line must be an object like {"text": "..."}.'
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            advance(len(raw))
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = parse_json(raw)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number) from error
            except ValueError as error:
                raise DataError(f"{where} is not valid JSON: {error}.", remedy) from error
            text = entry.get("text") if isinstance(entry, dict) else None
            if not isinstance(text, str):
                raise DataError(f'{where} has no string "text".', remedy)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{where} holds half a surrogate pair.", remedy) from error
            yield text


def _read_parquet(path: Path, advance: Advance) -> Iterator[str]:
    """Yield the rows of the column ``text`` that are not null."""
    remedy = "It should be a whole parquet file with a column of strings named text."
    row = 0
    try:
        if fault := shard_fault(path):
            raise DataError(f"{path} {fault}.", remedy)
        with pq.ParquetFile(path) as file:
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=ROWS_READ, columns=["text"]):
                advance(int(bytes_per_row * batch.num_rows))
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk failed; the file may be fine
            raise
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise DataError(f"{path} is damaged after row {row}: {reason}.", remedy) from error


READERS: dict[str, Callable[[Path, Advance], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _not_utf8(path: Path, number: int) -> MlxchatError:
    return DataError(f"{path}, line {number} is not UTF-8.", "Convert the file to UTF-8.")


SHARD_BYTES = 100_000_000  # of UTF-8 text
ROW_GROUP = 1024  # documents
SHUFFLED_CHARACTERS = 32_000_000  # held in memory and shuffled at a time
VALIDATION_PART = 0.05
REPORT_BYTES = 2**20
_ELSEWHERE = "choose another dataset name, or another folder with MLXCHAT_HOME"


@dataclass(frozen=True)
class IngestSummary:
    """The result of `ingest`; the last of ``shards`` is validation."""

    shards: tuple[Path, ...]
    files: int
    documents: int
    validation_documents: int
    characters: int


def ingest(
    source: Path,
    folder: Path,
    report: Report,
    seed: int = 0,
    clock: Callable[[], float] = time.time,
) -> IngestSummary:
    """Write the user's text as shards. The same source and seed give the same shards.

    Args:
        source: a .txt, .jsonl or .parquet file, or a folder of them.
        folder: the dataset's folder, which appears whole or not at all.
        report: called with progress in bytes, and with notes.
        seed: the seed of the shuffle and of the choice of validation documents.
        clock: returns seconds since the epoch.

    Raises:
        DataError: ``source`` holds fewer than two documents, or a file cannot be read; file and
            line are named.
        DiskError: ``folder`` is not empty, or cannot be written.
        LockedError: another process is writing the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds shards already" if shard_names(folder) else "is not empty"
        raise DiskError(f"{folder} {what}; nothing was written.", "Choose another dataset name.")
    files = _files(source)
    meter = _Meter(source.resolve().name, sum(path.stat().st_size for path in files), report, clock)
    _remove_leftovers(folder.parent)
    with new_folder(folder, _ELSEWHERE) as unfinished:
        split = _Split(unfinished, random.Random(seed))
        for path in files:
            found = split.documents
            for text in read_documents(path, meter.advance):
                split.add(text)
            if split.documents == found:
                _empty(path, alone=len(files) == 1, note=lambda text: report(Noted(clock(), text)))
        training = split.finish(source)
    meter.finish()
    return IngestSummary(
        shards=tuple(folder / shard_name(index) for index in range(training + 1)),
        files=len(files),
        documents=split.documents,
        validation_documents=split.validation_documents,
        characters=split.characters,
    )


def _remove_leftovers(parent: Path) -> None:
    """Delete the hidden folders of processes that have died, of any dataset."""
    with storing(parent):
        for left in parent.glob(f".*{UNFINISHED}"):
            if left.is_dir() and (lock := Lock.take(left, folder=True)):
                with lock:
                    shutil.rmtree(left)


def _files(source: Path) -> list[Path]:
    """Return the files to read, sorted, without hidden ones."""
    kinds = ", ".join(READERS)
    remedy = f"Give a file that ends in one of {kinds}, or a folder of such files."
    if not source.exists():
        raise NotFound(f"{source} does not exist.", remedy)
    if source.is_file():
        if source.suffix.lower() not in READERS:
            raise DataError(f"{source} is not one of {kinds}.", remedy)
        return [source]
    files = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in READERS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    if not files:
        raise DataError(f"There is no {kinds} in {source}.", remedy)
    return files


def _empty(path: Path, alone: bool, note: Callable[[str], None]) -> None:
    if alone:
        raise DataError(f"{path} is empty: it does not hold any text.", "Put some text into it.")
    note(f"{path} does not hold any text and is skipped.")


class _Split:
    """Shuffles documents, a buffer at a time, and deals them out to training and validation."""

    def __init__(self, folder: Path, order: random.Random) -> None:
        self.documents = self.validation_documents = self.characters = 0
        self._folder, self._order = folder, order
        self._buffer: list[str] = []
        self._buffered_characters = 0
        self._training_shards = 0
        self._training: _Shard | None = None
        self._validation = _Shard(folder / "validation")

    def add(self, text: str) -> None:
        self.documents += 1
        self.characters += len(text)
        self._buffer.append(text)
        self._buffered_characters += len(text)
        if self._buffered_characters >= SHUFFLED_CHARACTERS:
            self._deal()

    def finish(self, source: Path) -> int:
        """Write the remaining documents, and validation as the last shard.

        Returns:
            The number of training shards.
        """
        if self.documents < 2:
            found = "only one document" if self.documents else "no document"
            raise DataError(
                f"{source} makes {found}; one is needed for training and one for validation.",
                f"Add text: a document of a .txt file has up to {LONGEST_DOCUMENT} characters.",
            )
        self._deal()
        if self._training:
            self._training.close()
        self._validation.close()
        self._validation.path.rename(self._folder / shard_name(self._training_shards))
        return self._training_shards

    def _deal(self) -> None:
        """Empty the buffer, giving validation its share of all documents, at least one."""
        share = max(round(VALIDATION_PART * self.documents), 1) if self.documents > 1 else 0
        count = share - self.validation_documents
        self._order.shuffle(self._buffer)
        for text in self._buffer[:count]:
            self._validation.add(text)
        for text in self._buffer[count:]:
            if self._training is None or self._training.is_full:
                if self._training:
                    self._training.close()
                self._training = _Shard(self._folder / shard_name(self._training_shards))
                self._training_shards += 1
            self._training.add(text)
        self.validation_documents = share
        self._buffer, self._buffered_characters = [], 0


class _Shard:
    """One parquet file, written a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._schema = pa.schema([("text", pa.string())])
        self._rows: list[str] = []
        self._bytes = 0
        with storing(path):
            self._writer = pq.ParquetWriter(
                path,
                self._schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=False,
                write_statistics=False,
            )

    @property
    def is_full(self) -> bool:
        return self._bytes >= SHARD_BYTES

    def add(self, text: str) -> None:
        self._rows.append(text)
        self._bytes += len(text.encode())
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows and sync the file."""
        if self._rows:
            self._flush()
        with storing(self.path):
            self._writer.close()
            sync(self.path)

    def _flush(self) -> None:
        with storing(self.path):
            self._writer.write_table(
                pa.table({"text": self._rows}, schema=self._schema), row_group_size=ROW_GROUP
            )
        self._rows = []


class _Meter:
    """Reports the progress in the source once per `REPORT_BYTES`."""

    def __init__(self, name: str, total: int, report: Report, clock: Callable[[], float]) -> None:
        self._name, self._total, self._report, self._clock = name, total, report, clock
        self._done = self._told = 0

    def advance(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= REPORT_BYTES:
            self._tell(min(self._done, self._total))

    def finish(self) -> None:
        self._tell(self._total)

    def _tell(self, done: int) -> None:
        self._told = done
        self._report(Progressed(self._clock(), self._name, done, self._total, "bytes"))
