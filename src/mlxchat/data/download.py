"""One download to disk: resumed, verified, whole or not at all, and by one process at a time.

A download grows ``FILE.incomplete`` beside its destination, under a lock that dies with its
process, and is renamed once its size and checksum are right.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from mlxchat.data.disk import is_at, lock, storing, sync
from mlxchat.data.hub import Hub, RemoteFile, TryAgain, check_status
from mlxchat.errors import MlxchatError

LOCK_POLL = 0.2  # seconds between looks at a file that another process is downloading
MISMATCHES = 3  # with the checksum, until a file counts as corrupt
SLOWEST = 1024  # bytes a second; what comes slower counts as stalled
PACE_SECONDS = 60.0  # that the speed is measured over
HASH_BLOCK = 2**20


def partial(destination: Path) -> Path:
    """Where a download to ``destination`` grows."""
    return destination.with_name(f"{destination.name}.incomplete")


def missing_bytes(remote: RemoteFile, destination: Path) -> int:
    """What is still to download, beyond what an earlier attempt left."""
    grown = partial(destination)
    return max(remote.size - (grown.stat().st_size if grown.exists() else 0), 0)


def download(
    hub: Hub,
    remote: RemoteFile,
    destination: Path,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Put ``remote`` at ``destination``, whole and verified or not at all.

    Goes on where an earlier download stopped. Where another live process is downloading to the
    same destination, waits and takes what it made. ``report`` gets the bytes done so far.

    Raises:
        UnreachableError: it cannot be had now.
        MlxchatError: it cannot be had, is not what the hub announced, or cannot be written.
        Cancelled: the hub's ``stop`` was set.
    """
    grown = partial(destination)
    with _alone(hub, grown) as (stream, contended):
        with storing(destination):
            if _is_there(remote, destination, contended):
                grown.unlink()
                return
        try:
            transfer = _Transfer(hub, remote, stream, report)
            hub.persist(remote.url, transfer.attempt, lambda: _size(stream))
        finally:
            if _size(stream) == 0 < remote.size:
                grown.unlink(missing_ok=True)
        with storing(destination):
            sync(grown)
            grown.replace(destination)
            sync(destination.parent)


class _Transfer:
    """Brings ``stream`` from whatever it holds to the whole, verified file."""

    def __init__(
        self, hub: Hub, remote: RemoteFile, stream: BinaryIO, report: Callable[[int], None]
    ) -> None:
        self._hub, self._remote, self._stream, self._report = hub, remote, stream, report
        self._mismatches = 0

    def attempt(self) -> None:
        """Try it once.

        Raises:
            TryAgain: something is missing, or wrong.
            MlxchatError: it was wrong too often.
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
            raise TryAgain("what came does not match the hub's size and checksum")
        raise MlxchatError(
            f"{remote.url} is corrupt: what came does not match the hub's size and checksum.",
            "Nothing of it was kept. Run the same command again, or choose another --endpoint.",
        )

    def _receive(self, offset: int) -> None:
        """Append what is missing, or start over where the server sends the whole."""
        remote, hub = self._remote, self._hub
        with hub.get(remote.url, offset) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._stream.truncate(0)
                raise TryAgain(f"the server has no bytes after {offset}")
            check_status(response, remote.url)
            if response.status_code == httpx.codes.PARTIAL_CONTENT:
                self._check_range(response, offset)
            else:
                self._stream.truncate(0)
                offset = 0
            since, came = hub.clock(), 0
            for chunk in response.iter_raw():
                hub.check_stop()
                with storing(remote.url):
                    _write(self._stream, chunk)
                offset += len(chunk)
                came += len(chunk)
                if offset > remote.size:
                    return
                self._report(offset)
                if (elapsed := hub.clock() - since) > PACE_SECONDS:
                    if came < SLOWEST * elapsed:
                        raise TryAgain(f"only {came} bytes came in {elapsed:.0f} s")
                    since, came = hub.clock(), 0

    def _check_range(self, response: httpx.Response, offset: int) -> None:
        """That the part sent is the one asked for, of a file of the size announced."""
        sent = response.headers.get("content-range", "")
        found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", sent)
        if not found or int(found[1]) != offset or found[2] not in ("*", str(self._remote.size)):
            self._stream.truncate(0)
            raise TryAgain(f"the server sends another part than was asked for ({sent})")


@contextmanager
def _alone(hub: Hub, grown: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open ``grown`` for appending, alone; True beside it when another had it meanwhile."""
    contended = False
    while True:
        with storing(grown):
            grown.parent.mkdir(parents=True, exist_ok=True)
            stream = grown.open("a+b", buffering=0)
        with stream:
            # Whoever held the lock may have renamed or deleted the file we opened.
            if lock(stream.fileno()) and is_at(stream.fileno(), grown):
                yield stream, contended
                return
        contended = True
        hub.sleep(LOCK_POLL)
        hub.check_stop()


def _is_there(remote: RemoteFile, destination: Path, contended: bool) -> bool:
    """Whether another process has finished it; without a checksum, one that we saw at it."""
    if not destination.is_file() or destination.stat().st_size != remote.size:
        return False
    with destination.open("rb", buffering=0) as stream:
        return contended if remote.checksum is None else _matches(stream, remote)


def _matches(stream: BinaryIO, remote: RemoteFile) -> bool:
    """Whether the content has the checksum that was announced, if one was."""
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
