"""The checksums of a directory's files, in the form of ``sha256sum``.

A directory that has them can be checked without mlxchat too: ``sha256sum --check SHA256SUMS``.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from mlxchat.ckpt.folders import unplugged, unreadable
from mlxchat.ckpt.foreign import damaged, unusable
from mlxchat.errors import MlxchatError

FILE = "SHA256SUMS"
PIECE = 2**22  # bytes that are hashed at a time
_LINE = re.compile(r"([0-9a-f]{64})  ([^/]+)")


def write(folder: Path) -> None:
    """Write the checksums of all files that are in a folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != FILE)
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in names]
    (folder / FILE).write_text("".join(lines), "utf-8")


def names(folder: Path) -> list[str]:
    """The files that a folder has checksums of.

    Raises:
        MlxchatError: it has none, or the list is damaged.
    """
    return list(_read(folder))


def check(path: Path, report: Callable[[int], None] = lambda _: None) -> None:
    """Compare a file with its checksum, if its folder has checksums.

    Args:
        path: the file.
        report: gets the number of bytes read, again and again.

    Raises:
        MlxchatError: the file is not what was saved, is not there, or the list is damaged.
    """
    if not os.path.lexists(path.parent / FILE):
        return
    expected = _read(path.parent).get(path.name)
    if expected is None:
        raise damaged(path.parent / FILE, f"it does not tell of {path.name}")
    try:
        found = _sha256(path, report)
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise _cannot_be_read(path, error) from error
    if found != expected:
        raise damaged(path, f"its sha256 is not the one in {FILE}")


def missing(path: Path) -> MlxchatError:
    """What is to be said of a file that is not in its directory."""
    folder = path.parent
    return unplugged(path) or unusable(folder, f"{folder} is incomplete: {path.name} is missing.")


def _cannot_be_read(path: Path, error: OSError) -> MlxchatError:
    if isinstance(error, PermissionError):
        return unreadable(path, error)
    return damaged(path, error.strerror or str(error))


def _read(folder: Path) -> dict[str, str]:
    path = folder / FILE
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise _cannot_be_read(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not text") from error
    sums = {}
    for number, line in enumerate(lines[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise damaged(path, f"line {number}")
        sums[match.group(2)] = match.group(1)
    if not sums or lines[-1]:
        raise damaged(path, "it ends too early")
    return sums


def _sha256(path: Path, report: Callable[[int], None] = lambda _: None) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            done += len(piece)
            report(done)
    return digest.hexdigest()
