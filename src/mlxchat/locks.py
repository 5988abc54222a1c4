"""Locks of files and folders, also on disks that have none.

Network drives and memory cards refuse the system's locks. There a file stands for the lock. It
names the process that holds it, because nothing removes the file when that process dies.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mlxchat.errors import LockedError
from mlxchat.system import identity

UNSUPPORTED = {  # error numbers of a disk that does not have the operation
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EBADF,  # of a lock on a folder, by NFS
}
HOLDER_BYTES = 1000  # of a file that stands for a lock; a host's name has at most 255
_CLOSED = -1  # in place of a descriptor


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still at ``path``, neither renamed nor removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class Lock:
    """The exclusive use of a file or folder, from `take` to `release` or the end of the process.

    It is the system's lock of the open file or, where the disk has no such locks, a file beside it
    that names the host and the process. Its context releases it.
    """

    def __init__(self, path: Path, file: Path, descriptor: int) -> None:
        self._path, self._file, self._descriptor = path, file, descriptor

    @classmethod
    def take(cls, path: Path, folder: bool = False) -> "Lock | None":
        """Lock a file or, with ``folder``, a folder; it is created if it is missing.

        Returns:
            The lock; None if another process, or another part of this one, holds it.

        Raises:
            OSError: it cannot be opened or created.
        """
        while True:
            if folder:
                path.mkdir(parents=True, exist_ok=True)
            flags = os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
            try:
                lock = cls(path, path, os.open(path, flags, 0o666))
            except FileNotFoundError:
                if folder:
                    continue  # its holder has just removed it
                raise
            try:
                fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock._descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                if error.errno not in UNSUPPORTED:
                    raise
                return cls._take_beside(path)
            if lock.is_held:
                return lock
            lock.release()  # its holder has renamed or removed what was opened here

    @classmethod
    def take_after(cls, path: Path, wait: Callable[[], object], folder: bool = False) -> "Lock":
        """Lock as `take` does, calling ``wait`` as long as another process holds the lock.

        Raises:
            OSError: it cannot be opened or created.
        """
        while not (lock := cls.take(path, folder)):
            wait()
        return lock

    @classmethod
    def _take_beside(cls, path: Path) -> "Lock | None":
        """Create the file that stands for the lock, unless a live process has created it."""
        file = _beside(path)
        _remove_stale(file)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        os.write(descriptor, f"{os.getpid()} {_this_host()}\n".encode())
        return cls(path, file, descriptor)

    @property
    def is_held(self) -> bool:
        """Whether what was locked is still in its place, so that no one else can have locked it."""
        return is_at(self._descriptor, self._file)

    def renew(self) -> bool:
        """Return whether the lock is held; where somebody deleted its file, lock a new one.

        Raises:
            OSError: the file cannot be created.
        """
        if self.is_held:
            return True
        again = Lock.take(self._path)
        if again is None:
            return False
        os.close(self._descriptor)
        self._file, self._descriptor = again._file, again._descriptor
        return True

    def release(self) -> None:
        """Let others take the lock. Releasing it again does nothing."""
        if self._descriptor == _CLOSED:
            return
        if self._file != self._path and self.is_held:
            self._file.unlink()
        os.close(self._descriptor)
        self._descriptor = _CLOSED

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def in_use(path: Path, problem: str, remedy: str) -> LockedError:
    """Return the error for a lock that another process holds.

    Where a file stands for the lock, the remedy names it: a process of another host that died
    leaves it behind.
    """
    file = _beside(path)
    with suppress(OSError), file.open("rb") as stream:
        process, host = _holder(stream)
        remedy += (
            f" The disk does not support locks, so the file {file} is used instead. Delete it if "
            f"process {process[:20]!a} on {host[:99]!a} has ended."
        )
    return LockedError(problem, remedy)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.held")


def _holder(file: BinaryIO) -> tuple[str, str]:
    """Return the process and the host that a file which stands for a lock names."""
    process, _, host = file.read(HOLDER_BYTES).decode("utf-8", "replace").strip().partition(" ")
    return process, host


def _remove_stale(file: Path) -> None:
    """Delete the file of a process of this host that has died."""
    try:
        with file.open("rb") as stream:
            process, host = _holder(stream)
            ours = host.split()[-1:] == [identity()] and process.isdecimal()
            if ours and not _is_alive(int(process)) and is_at(stream.fileno(), file):
                file.unlink()
    except FileNotFoundError:
        return


def _this_host() -> str:
    """Return the name of this machine, and its identity where that is not its name."""
    return " ".join(dict.fromkeys((socket.gethostname(), identity())))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
