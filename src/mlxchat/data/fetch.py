"""Bringing shards from the hub to disk: room first, several at once, each checked."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlxchat.data.disk import require_space, storing, sync
from mlxchat.data.download import download, missing_bytes
from mlxchat.data.hub import NEWEST, Hub, NotFoundError, RemoteFile
from mlxchat.data.shards import (
    REVISION,
    STREAMED,
    Dataset,
    parse_revision,
    pinned_revision,
    shard_fault,
)
from mlxchat.errors import MlxchatError
from mlxchat.telemetry.events import Event, Noted, Progressed, Report

ALL_SHARDS = "all shards"  # the task of the bar that counts every file of a fetch

Result = TypeVar("Result")


def locate(hub: Hub, dataset: Dataset, folder: Path, name: str) -> RemoteFile:
    """What the hub says of a shard, of the commit that the folder's other shards are of.

    The first shard of a folder decides which that is.

    Raises:
        MlxchatError: the hub has no such file or cannot be asked, or the folder cannot be written.
    """
    pinned = pinned_revision(folder)
    try:
        remote = hub.stat(dataset.repo, name, pinned or NEWEST)
    except NotFoundError as error:
        if pinned is None:
            raise
        raise NotFoundError(
            error.problem,
            f"{error.remedy} The shards in {folder} are of the revision that its file {REVISION} "
            "names; if the hub has given that up, move all of them away and fetch them again.",
        ) from error
    if pinned is None and remote.commit:
        pinned = pin(folder, remote.commit)
        if pinned != remote.commit:  # another process was first, with an older one
            return hub.stat(dataset.repo, name, pinned)
    return remote


def pin(folder: Path, commit: str) -> str:
    """Record the commit of a folder's shards, unless one is recorded; the one that is.

    Raises:
        MlxchatError: the folder cannot be written.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / REVISION).open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            if recorded := parse_revision(stream.read()):
                return recorded
            stream.truncate(0)
            stream.write(f"{commit}\n".encode())
        sync(folder / REVISION)
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

    Shards that are on disk are left as they are, and kept from then on, should streaming have
    brought them. ``report`` is called from several threads, one at a time: bytes for every file,
    and for `ALL_SHARDS`, and a note when a transfer waits to be tried again.

    Returns:
        The paths, validation last.

    Raises:
        MlxchatError: a shard cannot be had, is not one, or the disk is too small for them all; the
            last is known before anything is downloaded.
    """
    training = dataset.training(num_shards)
    names = (dataset.validation, *training)  # validation first: without it nothing can be done
    for name in names:
        _keep_streamed(folder, name)
    report = _one_at_a_time(report)
    missing = [name for name in names if not _is_complete(folder / name, report, clock)]
    stop = threading.Event()
    hub = replace(hub.until(stop), note=lambda text: report(Noted(clock(), text)))
    with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
        try:
            asked: dict[str, Future[RemoteFile]] = {}
            for group in missing[:1], missing[1:]:  # one alone says it where nothing can be had
                asked |= {name: pool.submit(locate, hub, dataset, folder, name) for name in group}
                _wait(asked.values())
            remotes = {name: future.result() for name, future in asked.items()}
            needed = sum(missing_bytes(remotes[name], folder / name) for name in missing)
            require_space(folder, needed)
            progress = _Progress({name: remotes[name].size for name in missing}, report, clock)
            _wait(
                [
                    pool.submit(
                        download_shard, hub, remotes[name], folder / name, progress.of(name)
                    )
                    for name in missing
                ]
            )
        except BaseException:  # also Ctrl-C: what runs must stop before the pool can close
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [folder / name for name in (*training, dataset.validation)]


def download_shard(
    hub: Hub, remote: RemoteFile, destination: Path, report: Callable[[int], None]
) -> None:
    """Download one file and check that it is a shard; what is none is deleted.

    ``report`` gets the bytes done, all of them only once the file is known to be a shard.

    Raises:
        MlxchatError: it cannot be had, or is no shard.
    """
    download(hub, remote, destination, lambda done: report(min(done, remote.size - 1)))
    if fault := shard_fault(destination):
        destination.unlink()
        raise MlxchatError(
            f"The server sent no parquet shard: {remote.url} {fault}.",
            "Nothing of it was kept. Is the endpoint the right one? Check --endpoint and "
            "HF_ENDPOINT.",
        )
    report(remote.size)


def _keep_streamed(folder: Path, name: str) -> None:
    """Have a shard that streaming brought in its own place, whatever streaming does with it."""
    with suppress(OSError):  # it is not there, or the disk has no links: then it is downloaded
        os.link(folder / STREAMED / name, folder / name)


def _is_complete(path: Path, report: Report, clock: Callable[[], float]) -> bool:
    """Whether the file is there; one that is damaged is said to be, and counts as missing."""
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


def _wait(futures: Iterable[Future[Result]]) -> None:
    """Until all are done; the first to fail raises at once."""
    for future in as_completed(futures):
        future.result()


class _Progress:
    """Turns bytes done of single files into events, for each and for their sum."""

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
