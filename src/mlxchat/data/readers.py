"""Documents out of the kinds of files that people have.

Text files are cut at blank lines into documents of at most `DOCUMENT_CHARACTERS`, because packing
drops what is left of a document longer than a row; a line of a .jsonl file and a row of a .parquet
file are a document each.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.data.shards import shard_fault
from mlxchat.errors import MlxchatError

DOCUMENT_CHARACTERS = 8_000
ROWS = 1024  # of a parquet file, read at a time
PIECE_BYTES = 2**16  # of a line that has no end
REASON_CHARACTERS = 200  # of what pyarrow says is wrong

Advance = Callable[[int], None]  # is told of bytes read


def read_documents(path: Path, advance: Advance) -> Iterator[str]:
    """The documents of a file that hold more than white space."""
    try:
        for text in READERS[path.suffix.lower()](path, advance):
            if text.strip():
                yield text
    except OSError as error:
        raise MlxchatError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the file."
        ) from error


def _read_text(path: Path, advance: Advance) -> Iterator[str]:
    """Paragraphs, as many together as fit into a document."""
    document = ""
    for paragraph in _paragraphs(_text_pieces(path, advance)):
        if document and len(document) + 2 + len(paragraph) > DOCUMENT_CHARACTERS:
            yield document
            document = ""
        document = f"{document}\n\n{paragraph}" if document else paragraph
    yield document


def _paragraphs(pieces: Iterable[str]) -> Iterator[str]:
    """Runs of lines without a blank one between them, none longer than a document."""
    paragraph = ""
    for piece in pieces:
        paragraph += piece
        while len(paragraph) > DOCUMENT_CHARACTERS:
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
    """Where to cut ``text``: after the last line, sentence or word that a document has room for."""
    for separator in ("\n", ". ", " "):
        end = text.rfind(separator, DOCUMENT_CHARACTERS // 2, DOCUMENT_CHARACTERS)
        if end > 0:
            return end + len(separator)
    return DOCUMENT_CHARACTERS


def _text_pieces(path: Path, advance: Advance) -> Iterator[str]:
    """The lines of a UTF-8 file; those beyond `PIECE_BYTES` come in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 1
    with path.open("rb") as stream:
        while True:
            raw = stream.readline(PIECE_BYTES)
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
    """The ``text`` of every line's object."""
    remedy = 'Each line must be an object like {"text": "..."}.'
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            advance(len(raw))
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(raw.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number) from error
            except (ValueError, RecursionError) as error:
                raise MlxchatError(f"{where} is not valid JSON: {error}.", remedy) from error
            text = entry.get("text") if isinstance(entry, dict) else None
            if not isinstance(text, str):
                raise MlxchatError(f'{where} has no string "text".', remedy)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise MlxchatError(f"{where} holds half a surrogate pair.", remedy) from error
            yield text


def _read_parquet(path: Path, advance: Advance) -> Iterator[str]:
    """The rows of the column ``text`` that are not null."""
    remedy = "It should be a whole parquet file with a column of strings named text."
    row = 0
    try:
        if fault := shard_fault(path):
            raise MlxchatError(f"{path} {fault}.", remedy)
        with pq.ParquetFile(path) as file:
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=ROWS, columns=["text"]):
                advance(int(bytes_per_row * batch.num_rows))
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the file's
            raise
        reason = " ".join(str(error).split())[:REASON_CHARACTERS]
        raise MlxchatError(f"{path} is damaged after row {row}: {reason}.", remedy) from error


READERS: dict[str, Callable[[Path, Advance], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _not_utf8(path: Path, number: int) -> MlxchatError:
    return MlxchatError(f"{path}, line {number} is not UTF-8.", "Convert the file to UTF-8.")
