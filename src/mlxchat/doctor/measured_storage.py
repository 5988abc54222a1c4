"""Tries the operations of the disk that saving relies on, in a folder of mlxchat's home."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mlxchat.doctor.probes import Attempt, Names
from mlxchat.errors import reason_of
from mlxchat.locks import Lock

SYNCED_BYTES = 2**20


@contextmanager
def _scratch(home: str) -> Iterator[Path]:
    """Yield a folder in mlxchat's home that is removed in the end."""
    Path(home).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".doctor-", dir=home) as folder:
        yield Path(folder)


def _refusal(operation: Callable[[], object]) -> str:
    """Return the error with which the system refuses an operation, by name and text; "" if none."""
    try:
        operation()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "OSError")
        return f"{name}: {reason_of(error)}"
    return ""


def try_write(home: str) -> Attempt:
    """Create mlxchat's home if it is missing, and write a file there."""

    def write() -> None:
        with _scratch(home) as folder:
            (folder / "file").write_bytes(b"content")

    return Attempt(refused=_refusal(write))


def try_sync(home: str) -> Attempt:
    """Write a megabyte and flush it, with its folder, to the drive itself.

    A Mac does that by F_FULLFSYNC, which network drives and memory cards may refuse; fsync, which
    is tried then, leaves it in the drive's cache.
    """
    with _scratch(home) as folder:
        file = folder / "file"
        begun = time.perf_counter()
        with file.open("wb") as stream:
            stream.write(bytes(SYNCED_BYTES))
            stream.flush()
            refused, instead = _flush(stream.fileno()), ""
            if refused and hasattr(fcntl, "F_FULLFSYNC"):
                instead = "" if _refusal(lambda: os.fsync(stream.fileno())) else "fsync"
        return Attempt(seconds=time.perf_counter() - begun, refused=refused, instead=instead)


def _flush(descriptor: int) -> str:
    if full := getattr(fcntl, "F_FULLFSYNC", None):  # only Macs have it
        return _refusal(lambda: fcntl.fcntl(descriptor, full))
    return _refusal(lambda: os.fsync(descriptor))


def try_lock(home: str) -> Attempt:
    """Lock a file, and try to lock it once more, which must be refused.

    Where the system's lock is refused, mlxchat's own, which is a file then, is tried.
    """
    with _scratch(home) as folder, (folder / "file").open("wb") as first:
        alone = fcntl.LOCK_EX | fcntl.LOCK_NB
        if refused := _refusal(lambda: fcntl.flock(first, alone)):
            return Attempt(refused=refused, instead="a file" if _locks(folder / "own") else "")
        with (folder / "file").open("rb") as second:
            kept = _refusal(lambda: fcntl.flock(second, alone))
    return Attempt(refused="" if kept else "it was locked twice at a time")


def _locks(path: Path) -> bool:
    """Return whether mlxchat's own lock keeps a second one out."""
    try:
        lock = Lock.take(path)
        if lock is None:
            return False
        with lock:
            return Lock.take(path) is None
    except OSError:
        return False


def try_rename(home: str) -> Names:
    """Rename a folder with a file in it, and see whether its name in capitals is another one."""
    with _scratch(home) as folder:
        old, new = folder / "unfinished", folder / "step"
        old.mkdir()
        (old / "file").write_bytes(b"content")
        old.rename(new)
        whole = not old.exists() and (new / "file").read_bytes() == b"content"
        return Names(renamed=whole, case_sensitive=not (folder / "STEP").exists())


def try_link(home: str) -> Attempt:
    """Give a file a second name, a hard link."""
    with _scratch(home) as folder:
        (folder / "file").write_bytes(b"content")
        return Attempt(refused=_refusal(lambda: os.link(folder / "file", folder / "link")))
