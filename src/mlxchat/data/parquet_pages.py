"""Reads from the headers of a parquet file's pages what each of them unpacks to.

A reader of parquet allocates what a page's header says before it looks at the page, and the footer
need not agree with the headers. The format is Apache Parquet's: a column chunk is a row of pages,
each behind a header in Thrift's compact protocol
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import pyarrow.parquet as pq

_LARGEST_FIELD = 2**24  # bytes of a string in a header, such as the least value of a page
_DEEPEST = 8  # levels of structs in a header; there are three
_DICTIONARY_PAGE = 2
_ENCODING = {5: 2, 8: 4}  # where a header describes a data page (version 1, 2), and the encoding
_KINDS: dict[int, "Kind"] = {
    **dict.fromkeys((2, 8), "references"),
    **dict.fromkeys((5, 6, 7), "differences"),
}

Kind = Literal["values", "dictionary", "references", "differences"]


@dataclass(frozen=True)
class Page:
    """A page of a column.

    Attributes:
        kind: whether it holds values, a dictionary of values, references to that, or values as
            differences from the ones before; the last three can expand few bytes to many.
        packed: its bytes in the file.
        unpacked: its bytes in memory, before its values are made.
        values: how many values it holds.
    """

    kind: Kind
    packed: int
    unpacked: int
    values: int


def pages(file: BinaryIO, chunk: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """Yield the pages of a column chunk.

    Raises:
        ValueError: a header is damaged.
    """
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    position, end, seen = start, start + chunk.total_compressed_size, 0
    while position < end and seen < chunk.num_values:
        file.seek(position)
        header = _struct(file)
        unpacked, packed = _number(header, 2), _number(header, 3)
        position = file.tell() + packed
        data = next((field for field in _ENCODING if field in header), None)
        if _number(header, 1) == _DICTIONARY_PAGE:
            yield Page("dictionary", packed, unpacked, _number(header.get(7), 1))
        elif data:
            values = _number(header[data], 1)
            encoding = _number(header[data], _ENCODING[data])
            yield Page(_KINDS.get(encoding, "values"), packed, unpacked, values)
            seen += values


def _number(fields: Any, name: int) -> int:
    value = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page's header is incomplete")
    return value


def _struct(file: BinaryIO, depth: int = 0) -> dict[int, Any]:
    """Read a struct of Thrift's compact protocol: its numbers and structs by field."""
    if depth > _DEEPEST:
        raise ValueError("a page's header is nested too deeply")
    fields: dict[int, Any] = {}
    name = 0
    while first := _byte(file):
        step, kind = first >> 4, first & 15
        name = name + step if step else _signed(_varint(file))
        fields[name] = _value(file, kind, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int) -> Any:
    if kind in (1, 2):  # true or false, without a byte of its own
        return kind == 1
    if kind == 3:  # a byte
        return _byte(file)
    if kind in (4, 5, 6):  # integers
        return _signed(_varint(file))
    if kind == 8:  # a string
        length = _varint(file)
        if length > _LARGEST_FIELD or len(file.read(length)) != length:
            raise ValueError("a page's header is cut off")
        return None
    if kind == 12:
        return _struct(file, depth + 1)
    raise ValueError("a page's header has invalid content")


def _byte(file: BinaryIO) -> int:
    read = file.read(1)
    if not read:
        raise ValueError("a page's header is cut off")
    return read[0]


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a page's header has a number that is too long")


def _signed(number: int) -> int:
    """Undo the zigzag that gives small negative numbers short forms."""
    return (number >> 1) ^ -(number & 1)
