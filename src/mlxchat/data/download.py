"""Downloads a file from the hub, resuming if interrupted; it appears only when verified.

The data is written to ``FILE.incomplete`` next to the destination, under a lock that is released
when the process ends, and the file is renamed once its size and checksum are right.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from mlxchat.counts import counted
from mlxchat.data.hub import Hub, RemoteFile, TryAgain, check_status
from mlxchat.disk import storing, sync
from mlxchat.errors import DataError
from mlxchat.locks import Lock, is_at

LOCK_POLL = 0.2  # seconds between looks at a file that another process is downloading
MISMATCHES = 3  # failed checksums until a file counts as corrupt
SLOWEST = 1024  # bytes a second; a slower transfer counts as stalled
PACE_SECONDS = 60.0  # the window in which speed is measured
HASH_BLOCK = 2**20


def partial(destination: Path) -> Path:
    """Return the path under which a download to ``destination`` grows."""
    return destination.with_name(f"{destination.name}.incomplete")


def missing_bytes(remote: RemoteFile, destination: Path) -> int:
    """Return the number of bytes still to download, given what an earlier attempt left."""
    grown = partial(destination)
    return max(remote.size - (grown.stat().st_size if grown.exists() else 0), 0)


def download(
    hub: Hub,
    remote: RemoteFile,
    destination: Path,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Download ``remote`` to ``destination``, whole and verified or not at all.

    Resumes an earlier download. If another live process is downloading to the same destination,
    waits for it and uses its file.

    Args:
        hub: the hub to download from.
        remote: the file, as `Hub.stat` described it.
        destination: the path of the finished file.
        report: called with the bytes done so far.

    Raises:
        UnreachableError: the hub cannot be reached now.
        DataError: the file is not available or does not match the hub's size and checksum.
        DiskError: it cannot be written.
        Cancelled: the hub's ``stop`` was set.
    """
    while not _download_once(hub, remote, destination, report):
        hub.check_stop()


def _download_once(
    hub: Hub, remote: RemoteFile, destination: Path, report: Callable[[int], None]
) -> bool:
    """Download a file; returns False if somebody has deleted it while it grew."""
    grown = partial(destination)
    with _open_locked(hub, grown) as (stream, contended):
        with storing(destination):
            if _is_there(remote, destination, contended):
                grown.unlink()
                return True
        try:
            transfer = _Transfer(hub, remote, stream, report)
            hub.persist(remote.url, transfer.attempt, lambda: _size(stream))
        finally:
            if _size(stream) == 0 < remote.size and is_at(stream.fileno(), grown):
                grown.unlink()
        with storing(destination):
            sync(grown)
            if not is_at(stream.fileno(), grown):  # another process may download to a new one
                return False
            grown.replace(destination)
            sync(destination.parent)
    return True


class _Transfer:
    """One transfer: appends to ``stream`` until it holds the whole, verified file."""

    def __init__(
        self, hub: Hub, remote: RemoteFile, stream: BinaryIO, report: Callable[[int], None]
    ) -> None:
        self._hub, self._remote, self._stream, self._report = hub, remote, stream, report
        self._mismatches = 0

    def attempt(self) -> None:
        """Make one attempt.

        Raises:
            TryAgain: the file is incomplete or does not match its checksum.
            DataError: it failed to match `MISMATCHES` times.
        """
        remote, stream = self._remote, self._stream
        # Without a checksum nothing vouches that parts of two attempts belong together.
        if _size(stream) > remote.size or remote.checksum is None:
            stream.truncate(0)
        if _size(stream) < remote.size:
            self._receive(_size(stream))
        if _size(stream) < remote.size:
            raise TryAgain(f"it ended after {_size(stream)} of {remote.size} bytes")
        with storing(remote.url):
            if _size(stream) == remote.size and _matches(stream, remote):
                return
        stream.truncate(0)
        self._mismatches += 1
        if self._mismatches < MISMATCHES:
            raise TryAgain("the data does not match the hub's size and checksum")
        raise DataError(
            f"{remote.url} is corrupt: the data does not match the hub's size and checksum.",
            "It was discarded. Repeat the command, or choose another `endpoint`.",
        )

    def _receive(self, offset: int) -> None:
        """Append the missing bytes, or start over if the server sends the whole file."""
        remote, hub = self._remote, self._hub
        with hub.get(remote.url, offset) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._stream.truncate(0)
                raise TryAgain(f"the server has no data after byte {offset}")
            check_status(response, remote.url)
            if response.status_code == httpx.codes.PARTIAL_CONTENT:
                self._check_range(response, offset)
            else:
                self._stream.truncate(0)
                offset = 0
            since, came = hub.timer(), 0
            for chunk in response.iter_raw():
                hub.check_stop()
                with storing(remote.url):
                    _write(self._stream, chunk)
                offset += len(chunk)
                came += len(chunk)
                if offset > remote.size:
                    return
                self._report(offset)
                if (elapsed := hub.timer() - since) > PACE_SECONDS:
                    if came < SLOWEST * elapsed:
                        raise TryAgain(f"only {counted(came, 'bytes')} came in {elapsed:.0f} s")
                    since, came = hub.timer(), 0

    def _check_range(self, response: httpx.Response, offset: int) -> None:
        """Check that the server sends the requested range of a file of the announced size."""
        sent = response.headers.get("content-range", "")
        found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", sent)
        if not found or int(found[1]) != offset or found[2] not in ("*", str(self._remote.size)):
            self._stream.truncate(0)
            raise TryAgain(f"the server sent a different range than requested ({sent})")


@contextmanager
def _open_locked(hub: Hub, grown: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open ``grown`` for appending under a lock; yields it, and whether another process had it."""
    contended = False

    def wait() -> None:
        nonlocal contended
        contended = True
        hub.sleep(LOCK_POLL)
        hub.check_stop()

    with storing(grown):
        grown.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock.take_after(grown, wait)
    with lock:
        with storing(grown):
            stream = grown.open("a+b", buffering=0)
        with stream:
            yield stream, contended


def _is_there(remote: RemoteFile, destination: Path, contended: bool) -> bool:
    """Return whether another process has finished the file.

    A file without a checksum counts only if that process was seen downloading it.
    """
    if not destination.is_file() or destination.stat().st_size != remote.size:
        return False
    with destination.open("rb", buffering=0) as stream:
        return contended if remote.checksum is None else _matches(stream, remote)


def _matches(stream: BinaryIO, remote: RemoteFile) -> bool:
    """Return whether the content matches the announced checksum, if there is one."""
    if remote.checksum is None:
        return True
    if len(remote.checksum) == hashlib.sha256().digest_size * 2:
        digest = hashlib.sha256()
    else:  # git hashes a header in front of the content
        digest = hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)
    stream.seek(0)
    while block := stream.read(HASH_BLOCK):
        digest.update(block)
    return digest.hexdigest() == remote.checksum


def _write(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write to a disk that fills up may be short
        view = view[stream.write(view) :]


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size
