"""The user's own files, made into shards in nanochat's layout.

About one document in twenty, chosen at random, becomes validation.
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.files import COMPRESSED, UTF_8, FoundFiles, found_in, kind
from mlxchat.data.own_text import LONGEST_DOCUMENT, OWN_KINDS, read_documents
from mlxchat.data.shards import shard_name, shard_names
from mlxchat.data.text_files import Reading
from mlxchat.disk import UNFINISHED, new_folder, storing, sync
from mlxchat.errors import DataError, DiskError, MlxchatError, NotFound
from mlxchat.locks import Lock
from mlxchat.telemetry.clock import SYSTEM_CLOCK, TimeOfDay
from mlxchat.telemetry.events import Noted, Progressed, Report

SHARD_BYTES = 100_000_000  # of UTF-8 text
ROW_GROUP = 1024  # documents
ROW_GROUP_BYTES = 32_000_000  # of UTF-8 text, after which a row group of fewer ends
SHUFFLED_CHARACTERS = 32_000_000  # held in memory and shuffled at a time
VALIDATION_PART = 0.05
REPORT_BYTES = 2**20
_ELSEWHERE = "choose another dataset name, or another folder with MLXCHAT_HOME"


@dataclass(frozen=True)
class IngestSummary:
    """The result of `ingest`.

    Attributes:
        shards: the files written; the last is validation.
        files: the number of files read.
        documents: the number of documents written, those of validation included.
        validation_documents: the number of documents for validation.
        characters: the number of characters in all documents.
        skipped: the number of lines and rows left out, by reason.
        passed_over: files of the folder that were not read, each with the reason.
    """

    shards: tuple[Path, ...]
    files: int
    documents: int
    validation_documents: int
    characters: int
    skipped: Mapping[str, int]
    passed_over: Mapping[str, str]


def ingest(
    source: Path,
    folder: Path,
    report: Report,
    seed: int = 0,
    clock: TimeOfDay = SYSTEM_CLOCK,
    encoding: str = UTF_8,
    skip_bad: bool = False,
    replace: bool = False,
) -> IngestSummary:
    """Write the user's text as shards. The same source and seed give the same shards.

    Args:
        source: a file of one of `OWN_KINDS`, compressed or not, or a folder of them.
        folder: the dataset's folder, which appears whole or not at all.
        report: called with progress in bytes, and with notes.
        seed: the seed of the shuffle and of the choice of validation documents.
        clock: returns seconds since the epoch.
        encoding: the encoding of text without a byte-order mark.
        skip_bad: leave out lines and rows that cannot be read.
        replace: put the shards in the place of those in ``folder``, once they are complete.

    Raises:
        ConfigError: ``encoding`` is not known.
        DataError: ``source`` holds fewer than two documents, or a file cannot be read; file and
            line are named.
        DiskError: ``folder`` is not empty, or cannot be written.
        LockedError: another process is writing the folder.
    """
    if not replace and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "already contains shards" if shard_names(folder) else "is not empty"
        remedy = "Choose another dataset name, or replace it with `replace`."
        raise DiskError(f"{folder} {what}; nothing was written.", remedy)
    found = _found(source)
    files, skipped = found.files, _Skipped()

    def note(text: str) -> None:
        report(Noted(clock(), text))

    if found.passed_over:
        note(f"Files ignored in {source}: {found}.")
    meter = _Meter(source.resolve().name, sum(path.stat().st_size for path in files), report, clock)
    _remove_leftovers(folder.parent)
    with new_folder(folder, _ELSEWHERE, replace) as unfinished:
        split = _Split(unfinished, random.Random(seed))
        for path in files:
            before = split.documents
            reading = Reading(path, encoding, skipped.add if skip_bad else None, meter.advance)
            for text in read_documents(reading, leave_out=skipped.add):
                split.add(text)
            if split.documents == before and len(files) > 1:
                note(f"{path} contains no text and is skipped.")
        if not split.documents:
            raise _nothing(source, skipped)
        training = split.finish(source)
    meter.finish()
    for text in skipped.notes():
        note(text)
    return IngestSummary(
        shards=tuple(folder / shard_name(index) for index in range(training + 1)),
        files=len(files),
        documents=split.documents,
        validation_documents=split.validation_documents,
        characters=split.characters,
        skipped=dict(skipped.counts),
        passed_over={str(path): reason for path, reason in found.passed_over.items()},
    )


def _remove_leftovers(parent: Path) -> None:
    """Delete the hidden folders of processes that have died, of any dataset."""
    with storing(parent):
        for left in parent.glob(f".*{UNFINISHED}"):
            if left.is_dir() and (lock := Lock.take(left, folder=True)):
                with lock:
                    shutil.rmtree(left)


def _found(source: Path) -> FoundFiles:
    """Return the files to read, and those that are passed over."""
    kinds = ", ".join(OWN_KINDS)
    remedy = (
        f"Give a file that ends in one of {kinds} (compressed: {', '.join(COMPRESSED)} after "
        "that), or a folder of such files. Convert other documents, such as .docx or .pdf, to "
        "text first."
    )
    if not source.exists():
        raise NotFound(f"{source} does not exist.", remedy)
    if source.is_file():
        if kind(source) not in OWN_KINDS:
            raise DataError(f"{source} is not one of {kinds}.", remedy)
        return FoundFiles((source,), {})
    found = found_in(source, OWN_KINDS)
    if not found.files:
        others = f" (files ignored: {found})" if found.passed_over else ""
        raise DataError(f"There is no {kinds} in {source}{others}.", remedy)
    return found


def _nothing(source: Path, skipped: "_Skipped") -> MlxchatError:
    """Return the error for a source without text, all of which may have been skipped."""
    if not skipped.counts:
        return DataError(
            f"{source} is empty: it contains no text.", "Use a file that contains text."
        )
    return DataError(
        f"Nothing is left of {source}. {' '.join(skipped.notes())}",
        "Fix the file, or use another one.",
    )


class _Skipped:
    """Counts the lines and rows that are left out, by reason, and remembers the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, place: str, reason: str) -> None:
        self.counts[reason] += 1
        self._first.setdefault(reason, place)

    def notes(self) -> Iterator[str]:
        for reason, count in self.counts.items():
            yield f"Skipped: {count:,}. The first is {self._first[reason]}, which {reason}."


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
            raise DataError(
                f"{source} yields only one document, but training and validation need one each.",
                f"Add text: a .txt file is split into documents of up to {LONGEST_DOCUMENT} "
                "characters.",
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
        self._bytes = self._pending = 0
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
        size = len(text.encode())
        self._rows.append(text)
        self._bytes += size
        self._pending += size
        if len(self._rows) == ROW_GROUP or self._pending >= ROW_GROUP_BYTES:
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
        self._rows, self._pending = [], 0


class _Meter:
    """Reports the progress in the source once per `REPORT_BYTES`."""

    def __init__(self, name: str, total: int, report: Report, clock: TimeOfDay) -> None:
        self._name, self._total, self._report, self._clock = name, total, report, clock
        self._done = self._reported = 0

    def advance(self, count: int) -> None:
        self._done += count
        if self._done - self._reported >= REPORT_BYTES:
            self._report_progress(min(self._done, self._total))

    def finish(self) -> None:
        self._report_progress(self._total)

    def _report_progress(self, done: int) -> None:
        self._reported = done
        self._report(Progressed(self._clock(), self._name, done, self._total, "bytes"))
