"""Disk errors as users see them, free space, file locks, and writes that survive a power cut."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxchat.errors import DiskError

_GIB = 2**30
RESERVE = _GIB  # bytes of disk that downloads leave free


@contextmanager
def storing(what: Path | str) -> Iterator[None]:
    """Turn the OSError of a full disk or a read-only folder into a DiskError for the user."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{what} cannot be stored: {error.strerror or error}.",
            "Make room on the disk, or choose another folder with MLXCHAT_HOME.",
        ) from error


def sync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # on a Mac, fsync leaves it in the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Try to lock an open file for this process alone; return whether that worked.

    The system releases the lock of a process that ends.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still at ``path``, neither renamed nor removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def require_space(folder: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit on the disk of ``folder`` and leave 1 GiB free.

    Raises:
        DiskError: they do not.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + RESERVE > free:
        raise DiskError(
            f"The disk of {folder} is too small: {needed / _GIB:.2f} GiB to download, "
            f"{free / _GIB:.2f} GiB free, of which 1 GiB must stay free.",
            "Make room, download fewer shards, or choose another disk with MLXCHAT_HOME.",
        )
