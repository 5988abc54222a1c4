"""The disk: writes that survive a power cut, new folders, space, and files of any kind.

Network drives and memory cards cannot sync everything; what they refuse to sync is not synced.
Anything may be in a folder: opening a pipe would wait for its writer, and a device may have no end,
so only regular files are opened.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlxchat.counts import round_size
from mlxchat.errors import ConfigError, DiskError, reason_of
from mlxchat.locks import UNSUPPORTED, Lock, in_use

RESERVE = 10**9  # bytes of disk that downloads leave free
UNFINISHED = ".unfinished"  # ends the name of a folder that is being made
BEFORE = ".before"  # ends the name of one that is being replaced

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ELSEWHERE = "choose another folder with MLXCHAT_HOME"


@contextmanager
def storing(what: Path | str, elsewhere: str = _ELSEWHERE) -> Iterator[None]:
    """Turn the OSError of a full disk or a read-only folder into a DiskError.

    Args:
        what: what is being stored.
        elsewhere: how to store it in another place, for the remedy.
    """
    try:
        yield
    except OSError as error:
        first = "Free some disk space" if error.errno in _FULL else "Check its permissions"
        raise DiskError(
            f"{what} cannot be stored: {reason_of(error)}.", f"{first}, or {elsewhere}."
        ) from error


def sync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk, where the disk can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # on a Mac, fsync leaves it in the drive's cache
            with _if_known():
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
        with _if_known():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _if_known() -> Iterator[None]:
    """Ignore the error of a disk that does not have the operation."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces ``path`` at the end, whole, or is removed.

    Raises:
        OSError: the file cannot be written. ``path`` is unchanged.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        yield partial
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, elsewhere: str, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes its place and name at the end, whole, or is removed.

    It grows within ``.NAME.unfinished``, which one process at a time can use; what a process that
    died has left there is removed. A folder that is replaced is ``.NAME.before`` for a moment; if
    a process died in that moment, it gets its name back first.

    Args:
        folder: the new folder, which is missing or empty, unless ``replace``.
        elsewhere: how to choose another one, for the remedies.
        replace: remove what has that name, once the new folder is complete.

    Raises:
        LockedError: another process is making it.
        DiskError: there is something in it, or it cannot be written.
    """
    place = folder.with_name(f".{folder.name}{UNFINISHED}")
    unfinished = place / secrets.token_hex(4)  # no one else's, whatever happens to the lock
    with storing(folder, elsewhere):
        lock = Lock.take(place, folder=True)
    if lock is None:
        problem = f"Another process is writing {folder}."
        raise in_use(place, problem, f"Wait for it to finish, or {elsewhere}.")
    with lock:
        try:
            with storing(folder, elsewhere):
                _recover(folder)
                if not replace:
                    _require_free(folder, elsewhere)
                for leftover in place.iterdir():
                    _remove(leftover)
                unfinished.mkdir()
            yield unfinished
            with storing(folder, elsewhere):
                for path in (*unfinished.rglob("*"), unfinished):
                    sync(path)
                if replace:
                    _swap(unfinished, folder)
                else:
                    _require_free(folder, elsewhere)
                    unfinished.rename(folder)
                sync(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                place.rmdir()


def _swap(unfinished: Path, folder: Path) -> None:
    """Put a complete folder in the place of another, which is removed."""
    before = folder.with_name(f".{folder.name}{BEFORE}")
    if os.path.lexists(folder):
        folder.rename(before)
    unfinished.rename(folder)
    if os.path.lexists(before):
        sync(folder.parent)
        _remove(before)


def _recover(folder: Path) -> None:
    """Undo a replacement that a process began and did not complete, or remove what it has left."""
    before = folder.with_name(f".{folder.name}{BEFORE}")
    if not os.path.lexists(before):
        return
    if folder.exists():
        _remove(before)
    else:
        before.rename(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _require_free(folder: Path, elsewhere: str) -> None:
    if folder.is_symlink() or (folder.exists() and (folder.is_file() or any(folder.iterdir()))):
        raise DiskError(
            f"{folder} is not empty; nothing was written.",
            f"{elsewhere[:1].upper()}{elsewhere[1:]}.",
        )


def nearest_existing(folder: Path) -> Path:
    """Return a folder or, if it does not exist, the nearest one above it that does."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def require_space(folder: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit on the disk of ``folder`` and leave 1 GB free.

    Raises:
        DiskError: they do not.
    """
    free = free_space(folder)
    if needed and needed + RESERVE > free:
        raise DiskError(
            f"The disk of {folder} is too small: {round_size(needed)} to download, "
            f"{round_size(free)} free, of which 1 GB must stay free.",
            "Free some space, download fewer shards, or choose another disk with MLXCHAT_HOME.",
        )


def require_utf8(path: Path) -> None:
    """Check that MLX can open files at a path: it takes only those whose names are in UTF-8.

    Raises:
        ConfigError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"The path {path} is not valid UTF-8, and MLX cannot open files there.",
            "Rename it, or choose another folder.",
        ) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes, without waiting.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        most: the most bytes that it may have.

    Raises:
        OSError: as for `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"More than {most:,} bytes", str(path))
    return content


class DiskUse(NamedTuple):
    """The bytes of files, each counted once, whatever its names.

    Attributes:
        bytes: all of them.
        shared: those of files that have a name elsewhere too, as in a copy of a run.
        linked: those of files that are elsewhere, where symbolic links lead.
    """

    bytes: int
    shared: int = 0
    linked: int = 0

    @property
    def freed(self) -> int:
        """The bytes that the disk has free again once the files are removed."""
        return self.bytes - self.shared - self.linked


def disk_use(paths: Iterable[Path], beside: Iterable[Path] = ()) -> DiskUse:
    """Return the bytes of files and of all in folders; what vanishes meanwhile does not count.

    A folder among them that is a symbolic link is the folder that it leads to; what links within
    folders lead to counts, and is told apart.

    Args:
        paths: the files and folders.
        beside: others, which may share files with them: what is removed together.
    """
    facts = dict[tuple[int, int], os.stat_result]()
    names, here = Counter[tuple[int, int]](), set[tuple[int, int]]()
    for found, linked in _files(paths):
        facts[_key(found)] = found
        if not linked:
            here.add(_key(found))
            names[_key(found)] += 1
    names.update(_key(found) for found, linked in _files(beside) if not linked)

    def total(keys: Iterable[tuple[int, int]]) -> int:
        return sum(facts[key].st_size for key in keys)

    shared = total(key for key in here if facts[key].st_nlink > names[key])
    return DiskUse(total(facts), shared, total(facts.keys() - here))


def _key(found: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from others, whatever its names."""
    return found.st_dev, found.st_ino


def _files(paths: Iterable[Path]) -> Iterator[tuple[os.stat_result, bool]]:
    """Yield what the disk says of files and of all in folders, and whether a link leads there."""
    seen: set[tuple[int, int]] = set()  # folders; a link can lead to one above it
    waiting: list[Path | os.DirEntry[str]] = list(paths)
    linked: list[Path | os.DirEntry[str]] = []  # looked at last: what is here as well is here
    while waiting or linked:
        behind = not waiting
        entry = linked.pop() if behind else waiting.pop()
        with suppress(OSError):
            facts = entry.stat()
            is_folder = stat.S_ISDIR(facts.st_mode)
            given = isinstance(entry, Path)
            if not behind and entry.is_symlink() and not (given and is_folder):
                linked.append(entry)
            elif not is_folder:
                yield facts, behind
            elif _key(facts) not in seen:
                seen.add(_key(facts))
                with os.scandir(entry) as listed:
                    (linked if behind else waiting).extend(listed)
