"""Downloads shards of a dataset from the hub, several at a time, all from one commit.

`fetch` checks the disk space, then downloads the shards and checks that each is valid.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlxchat.data.download import LOCK_POLL, download, missing_bytes
from mlxchat.data.hub import NEWEST, Hub, NotFoundError, RemoteFile
from mlxchat.data.shards import (
    REVISION,
    STREAMED,
    Dataset,
    parse_revision,
    pinned_revision,
    shard_fault,
)
from mlxchat.disk import require_space, storing, sync
from mlxchat.errors import DataError
from mlxchat.locks import Lock
from mlxchat.telemetry.clock import SYSTEM_CLOCK, TimeOfDay
from mlxchat.telemetry.events import Event, Noted, Progressed, Report

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
            "the hub no longer has it, move all shards away and download them again.",
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
        with Lock.take_after(path, lambda: time.sleep(LOCK_POLL)):
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
    clock: TimeOfDay = SYSTEM_CLOCK,
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
            f"The server did not send a parquet shard: {remote.url} {fault}.",
            "It was discarded. Check that `endpoint` and HF_ENDPOINT name the right server.",
        )
    report(remote.size)


def _keep_streamed(folder: Path, name: str) -> None:
    """Keep a shard that streaming fetched, so that streaming cannot delete it."""
    with suppress(OSError):  # missing, or the disk has no links: then it is downloaded
        os.link(folder / STREAMED / name, folder / name)


def _is_complete(path: Path, report: Report, clock: TimeOfDay) -> bool:
    """Return whether a shard is there. A damaged one is reported and counts as missing."""
    if not path.exists():
        return False
    if fault := shard_fault(path):
        report(Noted(clock(), f"{path} {fault}. It will be downloaded again."))
        return False
    return True


def _one_at_a_time(report: Report) -> Report:
    lock = threading.Lock()

    def locked(event: Event) -> None:
        with lock:
            report(event)

    return locked


def _wait(futures: Iterable[Future[Waited]]) -> None:
    """Wait for all futures; the first failure is raised at once."""
    for future in as_completed(futures):
        future.result()


class _Progress:
    """Turns the bytes of single files into progress events, for each file and for all together."""

    def __init__(self, sizes: dict[str, int], report: Report, clock: TimeOfDay) -> None:
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
