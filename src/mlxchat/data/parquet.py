"""Reads parquet files in pieces that fit into memory, whatever they unpack to.

A small file can stand for any amount of text: a dictionary holds a long value once, and a run of
references to it takes a few bytes; so do values stored as differences, and well-packed pages.
Therefore the unpacked size of pages is known before any is read (`mlxchat.data.parquet_pages`),
rows are read few at a time where they may be long, and dictionaries within lists are kept until the
length of each row is known.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlxchat.data.cells import python_rows
from mlxchat.data.files import Wanted, allowed_bytes, too_repetitive
from mlxchat.data.parquet_pages import Page, pages
from mlxchat.data.text_files import LARGEST_VALUE, Reading, unpacked
from mlxchat.errors import DataError, MlxchatError

ROWS_AT_A_TIME = 1024  # at most
HELD_BYTES = LARGEST_VALUE  # of rows converted to objects at a time
BUFFER_BYTES = 2**20  # for each column that is being read
FAULT_CHARACTERS = 200  # of an error message of pyarrow
VALUE_BYTES = 8  # for each value of a list, however short
OBJECT_BYTES = 64  # for each value as an object, roughly

STRINGS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ParquetRow:
    """A row of a file.

    Attributes:
        number: counts from 0.
        group_end: the number after the last row of its row group.
        values: its columns by name, of those that are wanted.
        others: the names of its other columns.
    """

    number: int
    group_end: int
    values: dict[str, object]
    others: tuple[str, ...]


def row_groups(path: Path) -> list[int]:
    """Return the number of rows of each row group of a file.

    Raises:
        DataError: the file is damaged.
        OSError: it cannot be read.
    """
    with _Progress(path).faults_named():
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def parquet_rows(
    reading: Reading, wanted: Wanted, start: int = 0, groups: Sequence[int] | None = None
) -> Iterator[ParquetRow]:
    """Yield rows with the columns that are wanted.

    Text in a binary column is decoded; bytes that are no text stay as they are. A row that is too
    long, or holds a string that is no text, is bad (`Reading`).

    Args:
        reading: the file.
        wanted: the columns to read.
        start: the row to begin with, by its number in the file; earlier ones are left out.
        groups: the row groups to read, in this order; None for all as they are in the file.

    Raises:
        DataError: the file is damaged, has no column that is wanted, or unpacks to more than
            `allowed_bytes`.
        OSError: it cannot be read.
    """
    progress = _Progress(reading.path)
    held, allowed = 0, allowed_bytes(reading.path.stat().st_size)
    with unpacked(reading) as path, progress.faults_named():
        columns = pq.read_schema(path).names
        names = wanted.of(reading.path, columns)
        others = tuple(name for name in columns if name not in names)
        for first, group_end, batch in _batches(path, reading, names, start, groups):
            sizes = sum(map(_sizes, batch.columns), np.zeros(batch.num_rows, np.int64))
            for number, values in _pieces(batch, first, sizes, reading):
                held += int(sizes[number - first])
                if held > allowed:
                    raise too_repetitive(reading.path, allowed)
                progress.rows = number + 1
                yield ParquetRow(number, group_end, values, others)


class _Progress:
    """Counts the rows read from a file, and names the last in the error for a damaged file."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path

    @contextmanager
    def faults_named(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
                raise
            raise DataError(
                f"{self._path} is damaged after row {self.rows}: {_in_a_line(error)}.",
                "Replace it with an intact parquet file; a downloaded one can be downloaded again.",
            ) from error


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:FAULT_CHARACTERS].rstrip(".")


def _batches(
    path: Path,
    reading: Reading,
    names: list[str],
    start: int,
    groups: Sequence[int] | None,
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """Yield rows of ``groups`` as they are read, without those before ``start``.

    Each batch comes with the number of its first row, and that after its row group.
    """
    metadata = pq.read_metadata(path)
    every = range(metadata.num_row_groups)
    ends = np.cumsum([metadata.row_group(number).num_rows for number in every]).tolist()
    with path.open("rb") as file:
        columns = [_columns(file, metadata, number, names, reading.path) for number in every]
    kept = _kept(column for group in columns for column in group)
    bytes_per_row = reading.path.stat().st_size / max(metadata.num_rows, 1)
    with pq.ParquetFile(
        path, metadata=metadata, read_dictionary=sorted(kept), buffer_size=BUFFER_BYTES
    ) as table:
        for number in every if groups is None else groups:
            end = ends[number]
            row = end - metadata.row_group(number).num_rows
            if end <= start:
                continue
            at_a_time = min(c.rows_at_a_time(c.path in kept) for c in columns[number])
            for batch in table.iter_batches(at_a_time, row_groups=[number], columns=names):
                reading.advance(int(bytes_per_row * batch.num_rows))
                before = min(max(start - row, 0), batch.num_rows)
                yield row + before, end, batch.slice(before)
                row += batch.num_rows


@dataclass(frozen=True)
class _Column:
    """A column of a row group.

    Attributes:
        where: its place, for messages.
        path: its name, with those within it if it has parts.
        listed: whether it is within a list, so that a row holds any number of values.
        width: the bytes of a value if all have as many, null or not; else 0.
        pages: its pages.
    """

    where: str
    path: str
    listed: bool
    width: int
    pages: tuple[Page, ...]

    def check(self) -> None:
        """Check that neither a page, nor all pages that one row may refer to, take too much memory.

        Raises:
            DataError: one does.
        """
        for page in self.pages:
            if page.unpacked > LARGEST_VALUE * max(page.values, 1):
                raise _too_large(self.where, "holds a value of", LARGEST_VALUE)
            if self._cost(page) > allowed_bytes(page.packed):
                raise _too_large(self.where, "unpacks to", allowed_bytes(page.packed))
        packed = sum(page.packed for page in self.pages)
        if self.listed and sum(map(self._cost, self.pages)) > allowed_bytes(packed):
            raise _too_large(self.where, "unpacks to", allowed_bytes(packed))

    @property
    def repeats(self) -> bool:
        """Whether one row, being a list, may refer to more than is held at a time."""
        longest = max([p.unpacked for p in self.pages if p.kind == "dictionary"], default=0)
        references = sum(page.values for page in self.pages if page.kind == "references")
        return self.listed and longest * references > HELD_BYTES

    def rows_at_a_time(self, dictionary_is_kept: bool) -> int:
        """Return how many rows can be read at a time.

        A value made of a dictionary or of differences can be as long as its page. Others are as
        long as they are, but each row of a list may be in pages of its own.
        """
        expanding = {"differences"} if dictionary_is_kept else {"differences", "dictionary"}
        longest = [page.unpacked for page in self.pages if page.kind in expanding]
        rows = HELD_BYTES // max(1, self.width, *longest)
        data = [page for page in self.pages if page.kind != "dictionary"]
        if sum(map(self._cost, data)) > HELD_BYTES:
            fewest = 1 if self.listed else min(page.values for page in data[:-1] or data)
            rows = min(rows, HELD_BYTES * fewest // max(map(self._cost, data)))
        return min(max(rows, 1), ROWS_AT_A_TIME)

    def _cost(self, page: Page) -> int:
        each = VALUE_BYTES if self.listed or page.kind == "differences" else 0
        return page.unpacked + (each + self.width) * page.values


def _columns(
    file: BinaryIO, metadata: pq.FileMetaData, number: int, names: Collection[str], path: Path
) -> list[_Column]:
    """Return the columns of a row group that are read, none of which is too large."""
    group = metadata.row_group(number)
    columns = []
    for index in range(group.num_columns):
        chunk, schema = group.column(index), metadata.schema.column(index)
        name = chunk.path_in_schema
        if any(f"{name}.".startswith(f"{wanted}.") for wanted in names):
            column = _Column(
                where=f"{path}, row group {number + 1}, column {name}",
                path=name,
                listed=schema.max_repetition_level > 0,
                width=schema.length if schema.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0,
                pages=tuple(pages(file, chunk)),
            )
            column.check()
            columns.append(column)
    return columns


def _kept(columns: Iterable[_Column]) -> set[str]:
    """Return the columns whose dictionaries are kept until the length of each row is known.

    That takes pyarrow longer. It can keep none of a column that also has differences.
    """
    found = list(columns)
    others = {c.path for c in found if any(page.kind == "differences" for page in c.pages)}
    return {column.path for column in found if column.repeats} - others


def _too_large(where: str, what: str, most: int) -> MlxchatError:
    return DataError(
        f"{where}: a page {what} more than the {most:,} bytes that are read at once.",
        "Rewrite the file with its longest texts split into several rows.",
    )


def _pieces(
    batch: pa.RecordBatch, first: int, sizes: Sizes, reading: Reading
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the rows of a batch as objects with their numbers, converting a piece at a time."""
    ends = np.cumsum(sizes)
    row = 0
    while row < batch.num_rows:
        before = ends[row] - sizes[row]
        if not reading.is_short(f"{reading.path}, row {first + row + 1}", int(sizes[row])):
            row += 1
            continue
        end = int(np.searchsorted(ends, before + HELD_BYTES, side="right"))
        yield from _objects(batch.slice(row, end - row), first + row, reading)
        row = end


def _objects(
    piece: pa.RecordBatch, first: int, reading: Reading
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield rows as objects; where a text is not UTF-8, one by one, so that only its row is bad."""
    rows = []
    try:
        columns = list(map(_expanded, piece.columns))
        rows = python_rows(pa.RecordBatch.from_arrays(columns, piece.schema.names))
    except (pa.ArrowException, UnicodeDecodeError):
        if len(piece) > 1:
            for row in range(len(piece)):
                yield from _objects(piece.slice(row, 1), first + row, reading)
            return
        try:
            rows = python_rows(piece)  # with bytes as they are
        except UnicodeDecodeError:
            reading.bad(f"{reading.path}, row {first + 1}", "is not UTF-8")
    yield from enumerate(rows, start=first)


def _expanded(column: pa.Array) -> pa.Array:
    """Return a column with strings in place of bytes and dictionaries."""
    kind = _text_type(column.type)
    if kind == column.type:
        return column
    if pa.types.is_nested(kind):  # a cast of a slice would expand all that its array refers to
        column = column.take(pa.array(range(len(column)), pa.int64()))
    return column.cast(kind)


def _text_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with strings in place of bytes, and without dictionaries."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_string()
    if pa.types.is_dictionary(kind):
        return _text_type(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_text_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_text_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_text_type(field.type)) for field in kind])
    return kind


def _sizes(array: pa.Array) -> Sizes:
    """Return roughly how many bytes each row takes as an object: (rows,)."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _sizes(array.cast(pa.large_binary()))
    if pa.types.is_dictionary(kind):
        entries = np.append(_sizes(array.dictionary), OBJECT_BYTES)
        found = np.take(entries, array.indices.fill_null(len(entries) - 1))
        return np.asarray(found, np.int64)
    if isinstance(array, pa.ListArray | pa.LargeListArray):  # a map is one
        ends = np.append(0, np.cumsum(_sizes(array.values)))
        return np.asarray(np.diff(np.take(ends, array.offsets)) + OBJECT_BYTES, np.int64)
    if pa.types.is_fixed_size_list(kind):
        start, each = array.offset * kind.list_size, kind.list_size
        values = array.values.slice(start, len(array) * each)
        inner = _sizes(values).reshape(len(array), each)
        return np.asarray(np.sum(inner, axis=1) + OBJECT_BYTES, np.int64)
    if pa.types.is_struct(kind):
        fields = [_sizes(array.field(index)) for index in range(kind.num_fields)]
        return sum(fields, np.full(len(array), OBJECT_BYTES, np.int64))
    sizes = np.full(len(array), OBJECT_BYTES, np.int64)
    if pa.types.is_fixed_size_binary(kind) or kind in STRINGS:
        sizes += np.asarray(pc.binary_length(array).fill_null(0), np.int64)
    return sizes
