"""The kinds of files that contain text or rows, and the files of a folder that are read.

It is quick to import, so that settings can be checked before anything is read.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxchat.errors import DataError, MlxchatError, reason_of

TEXT = (".txt", ".md", ".rst")
ROWS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz")  # after the suffix of any kind
UTF_8 = "utf-8"
NAMED = 5  # files passed over, or columns, that a message names
COLUMN_CHARACTERS = 30  # of a column
_LEAST_ALLOWED = 64_000_000  # bytes
_MOST_EXPANSION = 100  # text packs to a tenth of its size, seldom to a thirtieth


def allowed_bytes(size: int) -> int:
    """Return the bytes that a file, or a page of one, of ``size`` bytes may unpack to.

    A file of 2 kB can unpack to 50 GB. Data that packs so well is no text to learn from.
    """
    return max(_LEAST_ALLOWED, _MOST_EXPANSION * size)


def too_repetitive(path: Path, allowed: int) -> MlxchatError:
    """Return the error for a file that unpacks to more than `allowed_bytes`."""
    return DataError(
        f"{path} unpacks to more than {allowed:,} bytes, so its content must be repetitive.",
        "Include each text only once. If the file is correct, unpack it yourself first.",
    )


def columns_named(columns: Sequence[str]) -> str:
    """Return the names of columns for a message, which many or long names cannot blow up.

    >>> columns_named(["text", "a" * 100, *"bcdefgh"])
    'text, aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, b, c, d and 4 more'
    """
    named = ", ".join(" ".join(name.split())[:COLUMN_CHARACTERS] for name in columns[:NAMED])
    more = len(columns) - NAMED
    return f"{named} and {more:,} more" if more > 0 else named


@dataclass(frozen=True)
class Wanted:
    """The columns to read from a table: any of ``names``; ``what`` describes their content."""

    names: Collection[str]
    what: str

    def of(self, path: Path, columns: Sequence[str]) -> list[str]:
        """Return the columns of a file that are to be read.

        Raises:
            DataError: there are none.
        """
        known = [name for name in columns if name in self.names]
        if not known:
            raise DataError(
                f"{path} has no column with {self.what} (its columns: {columns_named(columns)}).",
                f"Recognized columns: {', '.join(sorted(self.names))}. If the file contains "
                "something else, move it out of the folder.",
            )
        return known


TEXT_COLUMN = Wanted(("text",), "text")


def kind(path: Path) -> str:
    """Return the suffix that says what a file holds, in lower case.

    >>> kind(Path("Chats.JSONL.gz"))
    '.jsonl'
    """
    *_, first, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return first if last in COMPRESSED else last


def stem(path: Path) -> str:
    """Return a file's name without the suffixes of its kind and compression.

    >>> stem(Path("my.chats.jsonl.gz"))
    'my.chats'
    """
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.stem


@dataclass(frozen=True)
class FoundFiles:
    """The files of a folder: those to read, sorted, and why others are ignored."""

    files: tuple[Path, ...]
    passed_over: Mapping[Path, str]

    def __str__(self) -> str:
        """Say what was passed over, by reason; empty if nothing was."""
        by_reason: dict[str, list[str]] = {}
        for path, reason in self.passed_over.items():
            by_reason.setdefault(reason, []).append(path.name)
        return "; ".join(
            f"{len(names):,} {reason} ({', '.join(names[:NAMED])}"
            f"{', ...' if len(names) > NAMED else ''})"
            for reason, names in by_reason.items()
        )


def found_in(folder: Path, kinds: Collection[str]) -> FoundFiles:
    """Return the files of those kinds in a folder and its subfolders, and what was passed over.

    Hidden files and folders are passed over, and links to folders.

    Raises:
        DataError: a folder cannot be listed, or it is a pipe or a device.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(
            f"{folder} is neither a file nor a folder.",
            "Write its output to a regular file and use that.",
        )
    files, passed_over = [], {}
    for path in _entries(folder):
        if path.name.startswith("."):
            passed_over[path] = "hidden"
        elif path.is_dir():
            passed_over[path] = "a link to a folder"
        elif not path.is_file():
            passed_over[path] = "not a regular file, or a broken link"
        elif kind(path) not in kinds:
            passed_over[path] = "of another type"
        else:
            files.append(path)
    return FoundFiles(tuple(sorted(files)), dict(sorted(passed_over.items())))


def _entries(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder, and the folders that are not searched."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be listed: {reason_of(error)}.",
            "Check its permissions, or move it out of the folder.",
        ) from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        closed = [n for n in folders if n.startswith(".") or Path(parent, n).is_symlink()]
        folders[:] = [name for name in folders if name not in closed]
        yield from (Path(parent, name) for name in (*names, *closed))
