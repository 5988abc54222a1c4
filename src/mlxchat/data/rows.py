"""Reads files of rows: .jsonl, .json, .csv and .parquet.

They are read a row at a time, compressed or not, and no row longer than `LARGEST_VALUE` is held in
memory. A row that cannot be read is bad: it ends the reading, or is skipped (`Reading.bad`).
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from mlxchat.counts import counted
from mlxchat.data.cells import UNREAD
from mlxchat.data.files import Wanted, kind
from mlxchat.data.parquet import parquet_rows
from mlxchat.data.text_files import LARGEST_VALUE, Reading, failures_named, lines, open_text
from mlxchat.errors import DataError
from mlxchat.json_text import parse_json

JSON_PIECE = 2**20  # characters of a .json file that are read at a time
LIST = "It must be a single JSON list. If it has one value per line, name it .jsonl."
_OUTSIDE = re.compile(r'[\[\]{},"]')  # the tokens that count between strings, and within them
_INSIDE = re.compile(r'\\.|"', re.DOTALL)

Placed = tuple[str, object]  # the file and number of a row in words, and the row


def rows(reading: Reading, wanted: Wanted) -> Iterator[Placed]:
    """Yield the decoded rows of a file, each with its place in words.

    Of a parquet file, only the columns that are wanted are read; the others are `UNREAD`.

    Raises:
        DataError: the file cannot be read, is not in the format of its suffix, or is a table
            without a column that is wanted.
    """
    with failures_named(reading.path):
        yield from _READERS[kind(reading.path)](reading, wanted)


def _json_lines(reading: Reading, _: Wanted) -> Iterator[Placed]:
    for number, line in lines(reading):
        if text := line.lstrip("\ufeff").strip():
            yield from _value(reading, f"{reading.path}, line {number}", text)


def _json_list(reading: Reading, _: Wanted) -> Iterator[Placed]:
    with open_text(reading) as file:
        for number, text in enumerate(_elements(reading.path, file), start=1):
            place = f"{reading.path}, row {number}"
            if reading.is_decoded(place, text, file.encoding):
                yield from _value(reading, place, text)


def _value(reading: Reading, place: str, text: str) -> Iterator[Placed]:
    """Yield the value of a text of JSON; nothing if it is bad and skipped."""
    try:
        value = parse_json(text)
    except ValueError as error:
        reading.bad(place, "is not valid JSON", detail=str(error))
    else:
        yield place, value


def _elements(path: Path, file: TextIO) -> Iterator[str]:
    """Yield the text of each element of a JSON list, whether it is valid or not."""
    piece = _beginning(file)
    if piece and not piece.startswith("["):
        raise DataError(f"{path} does not contain a list.", LIST)
    held: list[str] = []  # the beginning of an element that goes on
    found, depth, quoted = 0, 0, False
    while piece:
        begin = position = 0
        while match := (_INSIDE if quoted else _OUTSIDE).search(piece, position):
            token, position = match[0], match.end()
            if token == '"':
                quoted = not quoted
            elif token in "[{":
                depth += 1
            elif token in "]}":
                depth -= 1
            if depth == 1 and token == "[":
                begin = position
            elif depth == 0 or (depth == 1 and token == ","):
                element = "".join(held) + piece[begin : match.start()]
                if found or token == "," or element.strip():
                    yield element
                found, held, begin = found + 1, [], position
            if depth == 0:
                if token != "]" or piece[position:].strip() or file.read(JSON_PIECE).strip():
                    raise DataError(f"{path} is not valid JSON after row {found}.", LIST)
                return
        held.append(piece[begin:])
        if sum(map(len, held)) > LARGEST_VALUE:
            raise DataError(
                f"{path}, row {found + 1} is longer than the maximum of {LARGEST_VALUE:,} "
                "characters.",
                "Split it into several rows.",
            )
        piece = _piece(file)
    raise DataError(f"{path} is not valid JSON: it ends in the middle of the list.", LIST)


def _beginning(file: TextIO) -> str:
    """Read the first text that is not blank; empty if there is none."""
    while piece := _piece(file):
        if begun := piece.lstrip("\ufeff \t\r\n"):
            return begun
    return ""


def _piece(file: TextIO) -> str:
    """Read text that does not end within an escape."""
    piece = file.read(JSON_PIECE)
    while piece.endswith("\\") and (more := file.read(1)):
        piece += more
    return piece


def _table(reading: Reading, wanted: Wanted) -> Iterator[Placed]:
    """Yield the rows of a .csv file, by the names in its first line."""
    csv.field_size_limit(LARGEST_VALUE)  # of the whole process; Python's own is 131,072
    last = 0  # line read

    def texts() -> Iterator[str]:
        nonlocal last
        for number, line in lines(reading, newline=""):
            last = number
            yield line

    table = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    while True:
        place = f"{reading.path}, line {last + 1}"
        try:
            fields = next(table, None)
        except csv.Error as error:
            reading.bad(place, "is not valid CSV", detail=str(error))
            continue
        if fields is None:
            return
        if header is None:
            header = fields
            wanted.of(reading.path, header)
        elif len(fields) == len(header):
            yield place, dict(zip(header, fields, strict=True))
        elif fields:
            reading.bad(
                place, f"has {counted(len(fields), 'fields')}, the first line {len(header)}"
            )


def _parquet(reading: Reading, wanted: Wanted) -> Iterator[Placed]:
    for row in parquet_rows(reading, wanted):
        others = dict.fromkeys(row.others, UNREAD)
        yield f"{reading.path}, row {row.number + 1}", row.values | others


_READERS: Mapping[str, Callable[[Reading, Wanted], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _table,
    ".parquet": _parquet,
}
