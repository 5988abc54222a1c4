"""The disk: locks, new folders, writes that survive a power cut, free space, and its errors.

Network drives and memory cards lack some of what other disks have. What they refuse is done in
another way: a lock that the system does not have is a file, and what cannot be synced is not.
"""

import errno
import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from mlxchat.errors import DiskError, LockedError
from mlxchat.system import identity

_GIB = 2**30
RESERVE = _GIB  # bytes of disk that downloads leave free
UNFINISHED = ".unfinished"  # ends the name of a folder that is being made

_REFUSED = {  # what a disk answers that does not have the operation
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EBADF,  # of a lock on a folder, by NFS
}
_CLOSED = -1  # in place of a descriptor
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


_ELSEWHERE = "choose another folder with MLXCHAT_HOME"


def reason_of(error: OSError | RuntimeError) -> str:
    """Return what the system, or MLX, says of a file that cannot be written, without a period."""
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


@contextmanager
def storing(what: Path | str, elsewhere: str = _ELSEWHERE) -> Iterator[None]:
    """Turn the OSError of a full disk or a read-only folder into a DiskError for the user.

    Args:
        what: what is stored there.
        elsewhere: how to store it in another place, for the remedy.
    """
    try:
        yield
    except OSError as error:
        first = "Make room on the disk" if error.errno in _FULL else "Check who may write there"
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
        if error.errno not in _REFUSED:
            raise


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
                    continue  # whoever had it has just removed it
                raise
            try:
                fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock._descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                if error.errno not in _REFUSED:
                    raise
                return cls._take_beside(path)
            if lock.is_held:
                return lock
            lock.release()  # whoever had it renamed or removed what was opened here

    @classmethod
    def take_after(cls, path: Path, wait: Callable[[], object]) -> "Lock":
        """Lock a file as `take` does, calling ``wait`` as long as another process holds the lock.

        Raises:
            OSError: it cannot be opened or created.
        """
        while not (lock := cls.take(path)):
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def in_use(path: Path, problem: str, remedy: str) -> LockedError:
    """Return the error for a lock that another process holds.

    Where a file stands for the lock, the remedy names it: a process of another host that died
    leaves it behind.
    """
    file = _beside(path)
    with suppress(OSError):
        process, _, host = file.read_text("utf-8", "replace").strip().partition(" ")
        remedy += (
            f" The disk has no locks, so that {file} stands for one. Delete it if process "
            f"{process[:20]!a} of {host[:99]!a} has ended."
        )
    return LockedError(problem, remedy)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.held")


def _remove_stale(file: Path) -> None:
    """Delete the file of a process of this host that has died."""
    try:
        with file.open("rb") as stream:
            process, _, host = stream.read(1000).decode(errors="replace").strip().partition(" ")
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


@contextmanager
def new_folder(folder: Path, elsewhere: str) -> Iterator[Path]:
    """Yield an empty folder that takes its place and name at the end, whole, or is removed.

    It grows within ``.NAME.unfinished``, which one process at a time can use; what a process that
    died has left there is removed.

    Args:
        folder: the new folder, which is missing or empty.
        elsewhere: how to choose another one, for the remedies.

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
        raise in_use(place, problem, f"Wait for it to end, or {elsewhere}.")
    with lock:
        try:
            with storing(folder, elsewhere):
                _require_free(folder, elsewhere)
                for leftover in place.iterdir():
                    _remove(leftover)
                unfinished.mkdir()
            yield unfinished
            with storing(folder, elsewhere):
                for path in (*unfinished.rglob("*"), unfinished):
                    sync(path)
                _require_free(folder, elsewhere)
                unfinished.rename(folder)
                sync(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                place.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _require_free(folder: Path, elsewhere: str) -> None:
    if folder.is_symlink() or (folder.exists() and (folder.is_file() or any(folder.iterdir()))):
        raise DiskError(
            f"There is something in {folder} already; nothing was written.",
            f"{elsewhere[:1].upper()}{elsewhere[1:]}.",
        )


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
