"""Bringing shards from the hub to disk: room first, several at once, each checked."""

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlxchat.data.hub import Hub, RemoteFile
from mlxchat.data.shards import STREAMED, Dataset, Report, shard_fault
from mlxchat.errors import MlxchatError
from mlxchat.telemetry import Event, Noted, Progressed

GIB = 2**30
RESERVE = GIB  # bytes of disk that downloads leave free
ALL_SHARDS = "all shards"  # the task of the bar that counts every file of a fetch

Result = TypeVar("Result")


def require_space(folder: Path, needed: int) -> None:
    """Check that ``needed`` bytes fit on the disk of ``folder`` and leave 1 GiB free.

    Raises:
        MlxchatError: they do not.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + RESERVE > free:
        raise MlxchatError(
            f"The disk of {folder} is too small: {needed / GIB:.2f} GiB to download, "
            f"{free / GIB:.2f} GiB free, of which 1 GiB must stay free.",
            "Make room, ask for fewer shards, or choose another disk with MLXCHAT_HOME.",
        )


def missing_bytes(hub: Hub, remote: RemoteFile, destination: Path) -> int:
    """What is still to download, beyond what an earlier attempt left."""
    partial = hub.partial(destination)
    return max(remote.size - (partial.stat().st_size if partial.exists() else 0), 0)


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
        (folder / STREAMED / name).unlink(missing_ok=True)
    report = _one_at_a_time(report)
    missing = [name for name in names if not _is_complete(folder / name, report, clock)]
    stop = threading.Event()
    hub = replace(hub.until(stop), note=lambda text: report(Noted(clock(), text)))
    with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
        try:
            asked: dict[str, Future[RemoteFile]] = {}
            for group in missing[:1], missing[1:]:  # one alone says it where nothing can be had
                asked |= {name: pool.submit(hub.stat, dataset.repo, name) for name in group}
                _wait(asked.values())
            remotes = {name: future.result() for name, future in asked.items()}
            needed = sum(missing_bytes(hub, remotes[name], folder / name) for name in missing)
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
    hub.download(remote, destination, lambda done: report(min(done, remote.size - 1)))
    if fault := shard_fault(destination):
        destination.unlink()
        raise MlxchatError(
            f"The server sent no parquet shard: {remote.url} {fault}.",
            "Nothing of it was kept. Is the endpoint the right one? Check --endpoint and "
            "HF_ENDPOINT.",
        )
    report(remote.size)


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
