"""Reads the documents in a user's own files, of any kind that holds text.

Text files are cut at blank lines into documents of at most `LONGEST_DOCUMENT` characters, because
packing drops the rest of a document that is longer than a row. In other files, the ``text`` of each
row is a document.
"""

from collections.abc import Callable, Iterable, Iterator

from mlxchat.data.files import TEXT, TEXT_COLUMN, kind
from mlxchat.data.rows import rows
from mlxchat.data.shards import shard_fault
from mlxchat.data.text_files import Reading, failures_named, open_text
from mlxchat.errors import DataError, command
from mlxchat.json_text import is_unicode

OWN_KINDS = (*TEXT, ".jsonl", ".csv", ".parquet")  # .json beside text is hardly ever text
LONGEST_DOCUMENT = 8_000  # characters
CONVERSATION_KEYS = {"messages", "conversations"}  # of rows for fine-tuning
LINE_PIECE = 2**16  # longer lines are read in pieces of this size


def read_documents(reading: Reading, leave_out: Callable[[str, str], None]) -> Iterator[str]:
    """Yield the documents of a file, without those that are only white space.

    Args:
        reading: the file, of one of `OWN_KINDS`, compressed or not.
        leave_out: called with the place and the reason for each row whose text is null.

    Raises:
        DataError: the file cannot be read or decoded; the line is named.
    """
    with failures_named(reading.path):
        of_text = kind(reading.path) in TEXT
        for text in _texts(reading) if of_text else _rows(reading, leave_out):
            if text.strip():
                yield text


def _rows(reading: Reading, leave_out: Callable[[str, str], None]) -> Iterator[str]:
    """Yield the ``text`` of each row."""
    path = reading.path
    if path.suffix.lower() == ".parquet" and (fault := shard_fault(path)):
        raise DataError(
            f"{path} {fault}.",
            "It should be an intact parquet file with a column of strings called text.",
        )
    for place, row in rows(reading, TEXT_COLUMN):
        if isinstance(row, dict) and "text" not in row and row.keys() & CONVERSATION_KEYS:
            raise DataError(
                f"{path} contains conversations, not text ({place}).",
                f"To fine-tune a trained model on them: {command('sft', data=path)}",
            )
        if not isinstance(row, dict) or "text" not in row:
            reading.bad(place, 'has no string "text"')
        elif (text := row["text"]) is None:
            leave_out(place, 'has a "text" that is null')
        elif isinstance(text, bytes):
            reading.bad(place, "is not UTF-8")
        elif not isinstance(text, str):
            reading.bad(place, 'has no string "text"')
        elif is_unicode(text):
            yield text
        else:
            reading.bad(place, "holds half a surrogate pair")


def _texts(reading: Reading) -> Iterator[str]:
    """Yield documents of as many whole paragraphs as fit."""
    document = ""
    for paragraph in _paragraphs(read_pieces(reading)):
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


def read_pieces(reading: Reading) -> Iterator[str]:
    """Yield the lines of a text file; longer ones than `LINE_PIECE` in pieces.

    Raises:
        DataError: a line cannot be decoded; it is named.
    """
    number = 1
    with open_text(reading, newline=None) as file:
        while piece := file.readline(LINE_PIECE):
            if reading.is_decoded(f"{reading.path}, line {number}", piece, file.encoding):
                yield piece
            number += piece.endswith("\n")
