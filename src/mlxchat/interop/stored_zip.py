"""Zip files with uncompressed entries, as torch stores tensors.

An entry is read by its offset in the file. The zip is checked first: entries that are compressed,
encrypted, duplicated, overlapping or beyond the file, or whose names lead elsewhere, are refused.
Format: PKWARE's APPNOTE.TXT 6.3.10.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlxchat.checkpoint.files import damaged, refused, unreadable

ALIGNMENT = 64  # of the first byte of an entry, as torch has it
PIECE_BYTES = 2**22  # bytes that are read at a time
MOST_AT_A_TIME = 2**24  # bytes of the directory: 200,000 entries
FLAGS = 0x0808  # sizes after the data, names in UTF-8; others mean encryption or patches
_HEADER = struct.Struct("<4s22xHH")  # before each entry: signature, lengths of name and extra field
_SIGNATURE = b"PK\x03\x04"
_PADDING = struct.Struct("<2sH")  # an extra field: identity, length


@dataclass(frozen=True)
class Entry:
    """Bytes within a zip file."""

    path: Path  # of the zip
    name: str
    start: int  # in the zip
    size: int
    crc: int

    def read(self, first: int = 0, count: int | None = None) -> bytearray:
        """Read ``count`` bytes from ``first`` on, by default all.

        The whole entry is read, piece by piece, to check its CRC.

        Raises:
            CheckpointError: the bytes are not those that were written.
        """
        end = self.size if count is None else first + count
        kept, crc, position = bytearray(end - first), 0, 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start)
                while position < self.size:
                    piece = file.read(min(PIECE_BYTES, self.size - position))
                    if not piece:
                        raise damaged(self.path, "it ends too early")
                    crc = zlib.crc32(piece, crc)
                    begin, stop = max(first - position, 0), max(end - position, 0)
                    wanted = piece[begin:stop]
                    offset = position + begin - first
                    kept[offset : offset + len(wanted)] = wanted
                    position += len(piece)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if crc != self.crc:
            raise damaged(self.path, f"{self.name} does not match its CRC")
        return kept


class _Directory(io.FileIO):
    """A file that refuses large reads, whatever size it claims for its directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_AT_A_TIME:
            raise ValueError(f"a directory of {size:,} bytes")
        return super().read(size) or b""


def zip_entries(path: Path) -> dict[str, Entry]:
    """Return the entries of a zip file by name.

    Raises:
        CheckpointError: the file cannot be read, is not a zip file, or has a refused entry.
    """
    try:
        file = _Directory(path)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        with file, zipfile.ZipFile(file) as archive:
            return _checked(path, file, archive)
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, OverflowError) as error:
        raise damaged(path, f"not a zip file: {error}") from error


def write_zip(path: Path, contents: Iterable[tuple[str, memoryview]]) -> None:
    """Write a zip file of entries, which are taken one after another.

    Each begins at a multiple of `ALIGNMENT` (unless it has 2 GB: its header is longer). The same
    contents make the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in contents:
            info = zipfile.ZipInfo(name)
            begin = file.tell() + _HEADER.size + len(name.encode()) + _PADDING.size
            padding = -begin % ALIGNMENT
            info.extra = _PADDING.pack(b"FB", padding) + bytes(padding)
            info.file_size = len(content)
            with archive.open(info, "w") as entry:
                entry.write(content)


def _checked(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        fault = _fault(info)
        if info.orig_filename in found:
            fault = "appears twice"
        elif info.header_offset < end:
            fault = "overlaps another"
        if fault is not None:
            raise refused(path, f"its entry {info.orig_filename!r:.100} {fault}")
        start = _start(file, info)
        found[info.filename] = Entry(path, info.filename, start, info.file_size, info.CRC)
        end = start + info.file_size
    if end > archive.start_dir:
        raise refused(path, "an entry lies beyond its end")
    return found


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Describe what is wrong with an entry by itself; None if nothing is."""
    name = info.orig_filename
    if info.filename != name:  # it ends at a NUL, or an extra field says another
        return "has two names"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed"
    if info.flag_bits & ~FLAGS:
        return "is encrypted or a patch"
    if not {"", ".", ".."}.isdisjoint(name.replace("\\", "/").split("/")):
        return "leads outside it"
    return None


def _start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return where an entry's bytes begin: after its own header, which gives its length."""
    file.seek(info.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_SIGNATURE):
        raise ValueError(f"no header of {info.filename}")
    _, name_length, extra_length = _HEADER.unpack(header)
    return info.header_offset + _HEADER.size + int(name_length) + int(extra_length)
