"""Downloads from the hub: single files, and the shards of a dataset.

`download` brings one file to disk: it resumes, verifies, and leaves the whole file or nothing. The
file grows as ``FILE.incomplete`` beside its destination, under a lock that dies with its process,
and is renamed once its size and checksum are right. `fetch` checks the space on the disk, then
downloads several shards at a time and checks each.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx

from mlxchat.data.hub import NEWEST, Hub, NotFoundError, RemoteFile, TryAgain, check_status
from mlxchat.data.shards import (
    REVISION,
    STREAMED,
    Dataset,
    parse_revision,
    pinned_revision,
    shard_fault,
)
from mlxchat.disk import Lock, is_at, require_space, storing, sync
from mlxchat.errors import DataError
from mlxchat.telemetry.events import Event, Noted, Progressed, Report

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
    while not _came(hub, remote, destination, report):
        hub.check_stop()


def _came(hub: Hub, remote: RemoteFile, destination: Path, report: Callable[[int], None]) -> bool:
    """Download a file; returns False if somebody has deleted it while it grew."""
    grown = partial(destination)
    with _alone(hub, grown) as (stream, contended):
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
            raise TryAgain("what came does not match the hub's size and checksum")
        raise DataError(
            f"{remote.url} is corrupt: what came does not match the hub's size and checksum.",
            "Nothing of it was kept. Run the same command again, or choose another `endpoint`.",
        )

    def _receive(self, offset: int) -> None:
        """Append the missing bytes, or start over if the server sends the whole file."""
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
        """Check that the server sends the requested range of a file of the announced size."""
        sent = response.headers.get("content-range", "")
        found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", sent)
        if not found or int(found[1]) != offset or found[2] not in ("*", str(self._remote.size)):
            self._stream.truncate(0)
            raise TryAgain(f"the server sends another range than the requested one ({sent})")


@contextmanager
def _alone(hub: Hub, grown: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open ``grown`` for appending under a lock; yields it, and whether another process had it."""
    contended = False

    def wait() -> None:
        nonlocal contended
        contended = True
        hub.sleep(LOCK_POLL)
        hub.check_stop()

    with storing(grown):
        grown.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(grown, wait)
    with lock:
        with storing(grown):
            stream = grown.open("a+b", buffering=0)
        with stream:
            yield stream, contended


def _locked(path: Path, wait: Callable[[], object]) -> Lock:
    """Lock a file, calling ``wait`` as long as another process holds the lock."""
    while not (lock := Lock.take(path)):
        wait()
    return lock


def _is_there(remote: RemoteFile, destination: Path, contended: bool) -> bool:
    """Whether another process has finished the file.

    A file without a checksum counts only if that process was seen downloading it.
    """
    if not destination.is_file() or destination.stat().st_size != remote.size:
        return False
    with destination.open("rb", buffering=0) as stream:
        return contended if remote.checksum is None else _matches(stream, remote)


def _matches(stream: BinaryIO, remote: RemoteFile) -> bool:
    """Whether the content matches the announced checksum, if there is one."""
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


ALL_SHARDS = "all shards"  # the task of the bar that counts every file of a fetch

Waited = TypeVar("Waited")


def stat_shard(hub: Hub, dataset: Dataset, folder: Path, name: str) -> RemoteFile:
    """Ask the hub for a shard's size and checksum, at the commit of the folder's other shards.

    The first shard of a folder pins the commit.

    Raises:
        NotFoundError: the hub has no such file at that commit.
        DataError: the hub cannot be asked.
        DiskError: the folder cannot be written.
    """
    pinned = pinned_revision(folder)
    try:
        remote = hub.stat(dataset.repo, name, pinned or NEWEST)
    except NotFoundError as error:
        if pinned is None:
            raise
        raise NotFoundError(
            error.problem,
            f"{error.remedy} The file {REVISION} in {folder} names the revision of its shards; if "
            "the hub no longer has it, move all of them away and fetch them again.",
        ) from error
    if pinned is None and remote.commit:
        pinned = pin(folder, remote.commit)
        if pinned != remote.commit:  # another process was first, with an older one
            return hub.stat(dataset.repo, name, pinned)
    return remote


def pin(folder: Path, commit: str) -> str:
    """Record the commit of a folder's shards, unless one is recorded already.

    Returns:
        The recorded commit.

    Raises:
        DiskError: the folder cannot be written.
    """
    path = folder / REVISION
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path, lambda: time.sleep(LOCK_POLL)):
            if recorded := parse_revision(path.read_bytes()):
                return recorded
            path.write_text(f"{commit}\n", "utf-8")
            sync(path)
        sync(folder)
    return commit


def fetch(
    folder: Path,
    dataset: Dataset,
    num_shards: int,
    hub: Hub,
    report: Report,
    workers: int = 4,
    clock: Callable[[], float] = time.time,
) -> list[Path]:
    """Download the first ``num_shards`` training shards and the validation shard.

    Shards on disk are left as they are; those that streaming fetched are kept from then on.

    Args:
        folder: the dataset's folder.
        dataset: the dataset on the hub.
        num_shards: the number of training shards.
        hub: the hub to download from.
        report: called from several threads, one at a time, with the progress of every file and of
            `ALL_SHARDS`, and with a note before a retry.
        workers: the number of downloads at a time.
        clock: returns seconds since the epoch.

    Returns:
        The paths of the shards, validation last.

    Raises:
        DataError: a shard is not available, or is not a shard.
        DiskError: the disk is too small for all of them; this is checked before any download.
    """
    training = dataset.training(num_shards)
    names = (dataset.validation, *training)  # validation first: nothing works without it
    for name in names:
        _keep_streamed(folder, name)
    report = _one_at_a_time(report)
    missing = [name for name in names if not _is_complete(folder / name, report, clock)]
    stop = threading.Event()
    hub = replace(hub.until(stop), note=lambda text: report(Noted(clock(), text)))
    with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
        try:
            remotes = _stat_shards(pool, hub, dataset, folder, missing)
            require_space(folder, sum(missing_bytes(remotes[n], folder / n) for n in missing))
            progress = _Progress({name: remotes[name].size for name in missing}, report, clock)
            _wait(
                [
                    pool.submit(download_shard, hub, remotes[n], folder / n, progress.of(n))
                    for n in missing
                ]
            )
        except BaseException:  # also Ctrl-C: transfers must stop before the pool can close
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [folder / name for name in (*training, dataset.validation)]


def _stat_shards(
    pool: ThreadPoolExecutor, hub: Hub, dataset: Dataset, folder: Path, names: list[str]
) -> dict[str, RemoteFile]:
    """Ask the hub for several shards, the first of them alone: if none can be had, one fails."""
    asked: dict[str, Future[RemoteFile]] = {}
    for group in (names[:1], names[1:]):
        asked |= {name: pool.submit(stat_shard, hub, dataset, folder, name) for name in group}
        _wait(asked.values())
    return {name: future.result() for name, future in asked.items()}


def download_shard(
    hub: Hub, remote: RemoteFile, destination: Path, report: Callable[[int], None]
) -> None:
    """Download one file and check that it is a shard; delete it if it is not.

    ``report`` gets the bytes done; the last ones are reported once the file is known to be a shard.

    Raises:
        DataError: the file is not available, or is not a shard.
    """
    download(hub, remote, destination, lambda done: report(min(done, remote.size - 1)))
    if fault := shard_fault(destination):
        destination.unlink()
        raise DataError(
            f"The server sent no parquet shard: {remote.url} {fault}.",
            "Nothing of it was kept. Check that `endpoint` and HF_ENDPOINT name the right server.",
        )
    report(remote.size)


def _keep_streamed(folder: Path, name: str) -> None:
    """Keep a shard that streaming fetched, so that streaming cannot delete it."""
    with suppress(OSError):  # missing, or the disk has no links: then it is downloaded
        os.link(folder / STREAMED / name, folder / name)


def _is_complete(path: Path, report: Report, clock: Callable[[], float]) -> bool:
    """Whether the file is there. A damaged one is reported and counts as missing."""
    if not path.exists():
        return False
    if fault := shard_fault(path):
        report(Noted(clock(), f"{path} {fault}. It is downloaded again."))
        return False
    return True


def _one_at_a_time(report: Report) -> Report:
    lock = threading.Lock()

    def locked(event: Event) -> None:
        with lock:
            report(event)

    return locked


def _wait(futures: Iterable[Future[Waited]]) -> None:
    """Wait for all; the first failure is raised at once."""
    for future in as_completed(futures):
        future.result()


class _Progress:
    """Turns the bytes of single files into progress events, for each file and for all together."""

    def __init__(self, sizes: dict[str, int], report: Report, clock: Callable[[], float]) -> None:
        self._sizes = sizes
        self._done = dict.fromkeys(sizes, 0)
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()

    def of(self, name: str) -> Callable[[int], None]:
        def report(done: int) -> None:
            with self._lock:
                self._done[name] = done
                now = self._clock()
                self._report(Progressed(now, name, done, self._sizes[name], "bytes"))
                total = sum(self._sizes.values())
                self._report(Progressed(now, ALL_SHARDS, sum(self._done.values()), total, "bytes"))

        return report
