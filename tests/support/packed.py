"""Small parquet files that unpack to much text, each in another way."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LETTERS = 1_000_000  # of each value
VALUES = 51_200  # 51 GB

FEW = 100  # 100 MB: enough to be refused where making more takes time


def by_reference(path: Path, column: str = "text") -> Path:
    """51 GB in less than 2 kB: a dictionary of one value, and a run of references to it."""
    values = pa.DictionaryArray.from_arrays(
        pa.array([0] * VALUES, pa.int32()), pa.array(["a" * LETTERS])
    )
    return write(path, {column: values})


def in_a_list(path: Path, column: str = "messages") -> Path:
    """51 GB in one row: a list of as many messages."""
    roles, texts = (
        pa.DictionaryArray.from_arrays(pa.array([0] * VALUES, pa.int32()), pa.array([value]))
        for value in ("user", "a" * LETTERS)
    )
    messages = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    return write(path, {column: pa.ListArray.from_arrays(pa.array([0, VALUES]), messages)})


def in_rows_of_lists(path: Path, column: str = "messages") -> Path:
    """51 GB in conversations of a question and an answer each."""
    roles, texts = (
        pa.DictionaryArray.from_arrays(pa.array([0, 1] * (VALUES // 2), pa.int32()), pa.array(two))
        for two in (["user", "assistant"], ["Go on.", "a" * 2 * LETTERS])
    )
    messages = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    ends = pa.array(range(0, VALUES + 1, 2), pa.int32())
    return write(path, {column: pa.ListArray.from_arrays(ends, messages)})


def by_difference(path: Path, column: str = "text") -> Path:
    """100 MB as differences from the value before, of which there are none."""
    values = pa.array(["a" * LETTERS] * FEW)
    return write(path, {column: values}, column_encoding={column: "DELTA_BYTE_ARRAY"})


def by_repetition(path: Path, column: str = "text") -> Path:
    """100 MB in pages of a megabyte that are packed well."""
    values = pa.array(["a" * LETTERS] * FEW)
    return write(path, {column: values}, write_batch_size=1)


def in_a_page(path: Path, column: str = "text") -> Path:
    """100 MB in one page that is packed well."""
    return write(path, {column: pa.array(["a" * LETTERS] * FEW)}, data_page_size=2**30)


def in_a_value(path: Path, column: str = "text") -> Path:
    """40 MB in one value."""
    return write(path, {column: pa.array(["a", "a" * 40 * LETTERS])}, write_batch_size=1)


OF_TEXT: tuple[Callable[[Path], Path], ...] = (
    by_reference,
    by_difference,
    by_repetition,
    in_a_page,
    in_a_value,
)


def write(path: Path, columns: dict[str, pa.Array], **options: object) -> Path:
    """Write a parquet file that only its data describes."""
    kinds = [column.type for column in columns.values()]
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        use_dictionary=any(pa.types.is_dictionary(k) or pa.types.is_list(k) for k in kinds),
        write_statistics=False,
        store_schema=False,
        **options,
    )
    return path
