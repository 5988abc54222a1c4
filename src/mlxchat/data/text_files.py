"""Reads text files, compressed or not, in any encoding, a bounded piece at a time.

A byte-order mark overrides the encoding that the user gave. Bytes that cannot be decoded do not end
the reading: they mark their line, which is refused or skipped like any other bad line.
"""

import bz2
import codecs
import gzip
import io
import lzma
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from mlxchat.data.files import UTF_8, allowed_bytes, too_repetitive
from mlxchat.errors import ConfigError, DataError, MlxchatError, reason_of

LARGEST_VALUE = 32_000_000  # characters of a line or bytes of a row; more is not held in memory
ENCODING_CHARACTERS = 30  # of an encoding's name in a message
_PIECE = 2**16  # characters of a line too long that are skipped at a time
_ERRORS = "mlxchat"  # the name of the error handler that decodes the undecodable
_UNDECODABLE = "\udcff"  # half a surrogate pair, to which no text decodes
_MARKS = (  # the longer of two that begin alike first; each codec takes its own mark away
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNPACKERS: Mapping[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item,return-value]
    ".bz2": bz2.BZ2File,  # type: ignore[dict-item]
    ".xz": lzma.LZMAFile,  # type: ignore[dict-item]
}


@dataclass(frozen=True)
class Reading:
    """A file, and how it is to be read.

    Attributes:
        path: the file.
        encoding: the encoding of text without a byte-order mark.
        skip: called with the place and the fault of each line or row that cannot be read, which is
            then left out; None to end the reading there.
        advance: called with the number of bytes after each read from the file.
        settable: whether who reads it has settings of the encoding and of what is skipped, which
            errors may name.
    """

    path: Path
    encoding: str = UTF_8
    skip: Callable[[str, str], None] | None = None
    advance: Callable[[int], object] = int
    settable: bool = True

    def __post_init__(self) -> None:
        """Check that the encoding is known.

        Raises:
            ConfigError: it is not.
        """
        try:
            b"text".decode(self.encoding, _ERRORS)
        except (LookupError, ValueError) as error:
            raise ConfigError(
                f"`encoding={self.encoding[:ENCODING_CHARACTERS]}` is not a known text encoding.",
                "Use one such as latin-1, cp1252, shift_jis or gb18030.",
            ) from error

    def bad(self, place: str, fault: str, detail: str = "", remedy: str = "Correct it") -> None:
        """Skip a line or row that cannot be read.

        Args:
            place: the file and the number of the line or row.
            fault: what is wrong, the same for similar ones.
            detail: more about this one.
            remedy: what to do, beside skipping it.

        Raises:
            DataError: nothing is to be skipped.
        """
        if self.skip is None:
            skipping = ", or skip such text with `skip_bad`" if self.settable else ""
            raise DataError(f"{place} {fault}{detail and f': {detail}'}.", f"{remedy}{skipping}.")
        self.skip(place, fault)

    def is_decoded(self, place: str, text: str, encoding: str) -> bool:
        """Return whether all of a text was decoded; it is bad if not.

        Args:
            place: the file and the number of the line or row.
            text: the text.
            encoding: the encoding it was decoded from, the one that the file's mark says.
        """
        if _UNDECODABLE not in text:
            return True
        name = encoding.removesuffix("-sig")
        remedy = "Convert the file to UTF-8"
        if encoding == self.encoding and self.settable:
            remedy += ", or give its encoding with `encoding`"
        self.bad(place, f"is not {name.upper() if name.startswith('utf') else name}", remedy=remedy)
        return False

    def is_short(self, place: str, size: int) -> bool:
        """Return whether a line or row of ``size`` is short enough; call `bad` if not."""
        if size <= LARGEST_VALUE:
            return True
        fault = f"is longer than the maximum of {LARGEST_VALUE:,} characters or bytes"
        self.bad(place, fault, remedy="Split it into several")
        return False


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn a failure to read or to unpack a file into an error that names it.

    Raises:
        DataError: the file cannot be read, or is damaged.
    """
    try:
        yield
    except UnicodeError as error:  # such as UTF-16 without a mark, whose byte order is unknown
        raise DataError(
            f"{path} cannot be decoded: {error}.",
            "Give its encoding with `encoding`, such as utf-16-le.",
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if not error.errno:  # an unpacker's
            raise _damaged(path, error) from error
        raise DataError(
            f"{path} cannot be read: {reason_of(error)}.",
            "Check its permissions and its disk, or move it out of the folder.",
        ) from error


@contextmanager
def open_bytes(reading: Reading) -> Iterator["io.BufferedReader[Any]"]:
    """Open a file, unpacking it if its suffix says that it is compressed.

    Reading raises DataError if it unpacks to more than `allowed_bytes`.
    """
    with _Counting(reading) as raw, io.BufferedReader(raw) as file:
        unpack = _UNPACKERS.get(reading.path.suffix.lower())
        if unpack is None:
            yield file
        else:
            with unpack(file) as source, io.BufferedReader(_Unpacking(reading, source)) as text:
                yield text


@contextmanager
def unpacked(reading: Reading) -> Iterator[Path]:
    """Yield the path of a file that is not compressed: its own, or that of a temporary copy.

    For a format that is not read from beginning to end.
    """
    if reading.path.suffix.lower() not in _UNPACKERS:
        yield reading.path
        return
    with NamedTemporaryFile() as copy:
        with open_bytes(reading) as file:
            shutil.copyfileobj(file, copy)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def open_text(reading: Reading, newline: str | None = "\n") -> Iterator[io.TextIOWrapper]:
    """Open a text file; ``newline`` as in Python's ``open``. Read it in pieces, or use `lines`.

    Raises:
        DataError: it is read as UTF-8, but is of another encoding or no text.
    """
    with open_bytes(reading) as file:
        begin = file.peek(4)
        marked = (encoding for mark, encoding in _MARKS if begin.startswith(mark))
        encoding = next(marked, reading.encoding)
        first = begin[:4]
        if encoding == UTF_8 and b"\0" in first and first.strip(b"\0"):
            raise DataError(
                f"{reading.path} begins with a zero byte, like UTF-16 without a byte-order mark.",
                "If it is text, give its encoding with `encoding`, such as utf-16-le.",
            )
        with io.TextIOWrapper(file, encoding, errors=_ERRORS, newline=newline) as text:
            yield text


def lines(reading: Reading, newline: str = "\n") -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, counted from 1, without the bad ones."""
    with open_text(reading, newline) as file:
        for number in count(1):
            line = file.readline(LARGEST_VALUE + 1)
            if not line:
                return
            place, size = f"{reading.path}, line {number}", len(line)
            while size > LARGEST_VALUE and line and not line.endswith("\n"):
                line = file.readline(_PIECE)
            if reading.is_short(place, size) and reading.is_decoded(place, line, file.encoding):
                yield number, line


class _Counting(io.FileIO):
    """A file that reports how many bytes are read."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading.path)
        self._advance = reading.advance

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._advance(count)
        return count


class _Unpacking(io.RawIOBase):
    """The unpacked content of a compressed file, which is bounded."""

    def __init__(self, reading: Reading, source: BinaryIO) -> None:
        self._path, self._source, self._done = reading.path, source, 0
        self._allowed = allowed_bytes(reading.path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._source.read(len(buffer))
        buffer[: len(piece)] = piece
        self._done += len(piece)
        if self._done > self._allowed:
            raise too_repetitive(self._path, self._allowed)
        return len(piece)


def _damaged(path: Path, error: Exception) -> MlxchatError:
    return DataError(
        f"{path} is damaged: {error}.", f"Replace it with an intact {path.suffix.lower()} file."
    )


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _UNDECODABLE, error.end


codecs.register_error(_ERRORS, _mark)
