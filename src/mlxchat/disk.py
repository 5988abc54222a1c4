"""The disk: its errors as the user sees them, room on it, and writes that outlast a power cut."""

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
    """Turn a disk that is full, or a folder that cannot be written, into an error the user sees."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{what} cannot be stored: {error.strerror or error}.",
            "Make room on the disk, or choose another folder with MLXCHAT_HOME.",
        ) from error


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # a Mac: fsync alone leaves it in the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Try to be the only process that holds the open file; the lock of a dead one is void."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: nobody renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def require_space(folder: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit on the disk of ``folder`` and leave 1 GiB free.

    Raises:
        MlxchatError: they do not.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + RESERVE > free:
        raise DiskError(
            f"The disk of {folder} is too small: {needed / _GIB:.2f} GiB to download, "
            f"{free / _GIB:.2f} GiB free, of which 1 GiB must stay free.",
            "Make room, ask for fewer shards, or choose another disk with MLXCHAT_HOME.",
        )
