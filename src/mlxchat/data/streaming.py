"""Streaming: training shards are fetched before they are needed and deleted afterwards.

A thread keeps the shards that the reader needs next on disk, in the order of the epochs, and never
more than allowed: it makes room before it downloads. Its shards are in ``.streamed/`` inside the
dataset's folder, and only files there are ever deleted: files in the folder itself, among them the
validation shard, stay.
"""

import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from mlxchat.data.download import missing_bytes, partial
from mlxchat.data.fetch import download_shard, stat_shard
from mlxchat.data.hub import Cancelled, DisconnectedError, Hub, UnreachableError
from mlxchat.data.shards import STREAMED, Dataset, check_shard, shard_fault, shard_names
from mlxchat.disk import require_space, storing
from mlxchat.errors import ConfigError, DataError, LockedError, MlxchatError
from mlxchat.locks import Lock, in_use
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Noted, Progressed, Report

SHARD = ".parquet"
LOCK = "lock"  # the file in the folder of streamed shards
LEAST_CACHED = 2  # one to read and one to fetch meanwhile
RETRY_SECONDS = 30.0  # until a failed shard is retried
PATIENCE = 10  # network failures of a shard before its reader gets the error
FIRST_PATIENCE = 10.0  # seconds for which a network that has never worked is tried
CLOSE_SECONDS = 5.0  # the longest wait for a transfer to stop on closing


@dataclass(frozen=True)
class _Failure:
    """The ``count``-th failure of a shard in a row; it is retried at ``retry`` seconds."""

    error: MlxchatError
    retry: float
    count: int

    @property
    def final(self) -> bool:
        """Whether retrying is pointless."""
        return not isinstance(self.error, UnreachableError) or self.count >= PATIENCE


class StreamingShards:
    """A `ShardSource` that streams a dataset of any size through a few files.

    Args:
        folder: the dataset's folder; created if missing.
        dataset: the dataset on the hub.
        max_cached: training shards on disk at a time, with the one that is being downloaded; the
            validation shard comes on top. Files that were there before count, but are never
            dropped; two are always allowed beside them.
        hub: the hub to download from.
        report: called with progress in bytes and reasons for waiting, also from the thread.
        num_shards: the number of training shards; None for all.
        clock: stamps the events, and tells when to try a shard again.

    Raises:
        ConfigError: ``max_cached`` is less than 2, or the dataset has fewer shards.
        LockedError: another process streams into the same folder.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        max_cached: int,
        hub: Hub,
        report: Report,
        num_shards: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if max_cached < LEAST_CACHED:
            raise ConfigError(
                f"`max_cached_shards={max_cached}` is too few: one shard is read while the next "
                "one downloads.",
                f"Give {LEAST_CACHED} or more.",
            )
        self.training = dataset.training(num_shards)
        self.validation = dataset.validation
        self._index = {name: index for index, name in enumerate(self.training)}
        self._folder, self._dataset, self._max_cached = folder, dataset, max_cached
        self._report, self._clock = report, clock
        self._stop = threading.Event()
        self._hub = replace(hub.until(self._stop), note=self._note)
        self._cache = folder / STREAMED
        with storing(folder):
            self._cache.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(self._cache / LOCK)
        if lock is None:
            raise self._locked_out()
        self._lock = lock
        self._drop_damaged()

        self._changed = threading.Condition()  # guards the attributes below
        self._position: int | None = None  # of the reader; until known, nothing comes ahead
        self._in_use: Counter[str] = Counter()
        self._wanted: list[str] = []  # shards that readers wait for, in order
        self._failures: dict[str, _Failure] = {}
        # Whether the server has ever answered; if not, it is not waited for.
        self._connected = bool(self._cached() or shard_names(folder))
        self._broken: MlxchatError | None = None  # the error that ended the thread
        self._thread = threading.Thread(target=self._run, name="streaming", daemon=True)
        self._thread.start()

    def acquire(self, name: str) -> Path:
        """Block until the shard is on disk, where it stays until it is released.

        Waits while the network is down for a while, and while ``max_cached`` shards are held until
        one of them is released.

        Raises:
            MlxchatError: the shard is not available, is not a shard, or the source was closed.
        """
        if self._find(name) is None:
            self._note(f"Waiting for {name}.")
        with self._changed:
            self._in_use[name] += 1
            self._position = self._index.get(name, self._position)
            self._failures.pop(name, None)
            self._wanted.append(name)
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._find(name) or self._has_failed(name))
                path = self._find(name)
                if path is None:
                    raise self._failure(name)
                check_shard(path)
            except BaseException:
                self._in_use[name] -= 1
                raise
            finally:
                self._wanted.remove(name)
        return path

    def release(self, name: str) -> None:
        """Release a shard that the reader has finished; it may be deleted."""
        with self._changed:
            self._in_use[name] -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop downloading; a partial shard stays and is resumed next time."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        self._lock.release()

    def _note(self, text: str) -> None:
        self._report(Noted(self._clock(), text))

    def _find(self, name: str) -> Path | None:
        """Return the path of a shard, or None if it is not on disk."""
        return next((p for p in (self._folder / name, self._cache / name) if p.is_file()), None)

    def _has_failed(self, name: str) -> bool:
        failure = self._failures.get(name)
        return self._stop.is_set() or (failure is not None and failure.final)

    def _failure(self, name: str) -> MlxchatError:
        if self._broken:
            return self._broken
        if name in self._failures:
            return self._failures[name].error
        return DataError(f"The download stopped before {name} arrived.", "Repeat the command.")

    def _locked_out(self) -> LockedError:
        return in_use(
            self._cache / LOCK,
            f"Another run streams into {self._folder}, and would delete the shards that this one "
            "reads.",
            "Wait for it to finish, or give this run another MLXCHAT_HOME.",
        )

    def _drop_damaged(self) -> None:
        """Delete shards that a crash of the machine damaged; they are fetched again."""
        with storing(self._cache):
            for name in shard_names(self._cache):
                if shard_fault(self._cache / name):
                    (self._cache / name).unlink()

    def _run(self) -> None:
        """Download the next shard needed, until closed."""
        try:
            while not self._stop.is_set():
                with self._changed:
                    with storing(self._cache):
                        if not self._lock.renew():  # somebody deleted its file
                            raise self._locked_out()
                        name = self._next()
                    if name is None:
                        self._changed.wait(RETRY_SECONDS)
                        continue
                self._download(name)
        except Cancelled:
            return
        except MlxchatError as error:
            self._broken = error
        finally:  # whatever ended this thread, nobody may wait for it
            self._stop.set()
            with self._changed:
                self._changed.notify_all()

    def _download(self, name: str) -> None:
        def progressed(done: int) -> None:
            self._report(Progressed(self._clock(), name, done, remote.size, "bytes"))

        path = (self._folder if name == self.validation else self._cache) / name
        error: MlxchatError | None = None
        hub = self._hub if self._connected else replace(self._hub, patience=FIRST_PATIENCE)
        try:
            remote = stat_shard(hub, self._dataset, self._folder, name)
            self._connected = True
            require_space(self._folder, missing_bytes(remote, path))
            download_shard(self._hub, remote, path, progressed)
        except DisconnectedError as caught:
            if not self._connected:
                raise
            error = caught
        except MlxchatError as caught:
            error = caught
        with self._changed:
            before = self._failures.pop(name, None)
            if error:
                count = before.count + 1 if before else 1
                self._failures[name] = _Failure(error, self._clock.seconds() + RETRY_SECONDS, count)
            self._changed.notify_all()

    def _next(self) -> str | None:
        """Return the shard to download now, after making room for it; None if there is none."""
        own = set(shard_names(self._folder)) - {self.validation}
        cached = self._cached()
        slots = max(self._max_cached - len(own), LEAST_CACHED)
        ahead = self._ahead(own, slots)
        self._drop(cached, len(cached) - slots, keep=ahead)  # where fewer are allowed now
        now = self._clock.seconds()
        # What is read next comes before validation, which is seldom needed at once.
        for name in (*self._wanted, *ahead[:LEAST_CACHED], self.validation, *ahead):
            failed = name in self._failures and now < self._failures[name].retry
            if failed or self._find(name):
                continue
            if name == self.validation or name in cached:
                return name
            if self._drop(cached, len(cached) + 1 - slots, keep=ahead):
                return name
        return None

    def _cached(self) -> list[str]:
        """Return the shards that streaming fetched, whole or partial."""
        found = self._cache.glob(f"[!.]*{SHARD}*")  # without the files of locks
        return sorted({path.name.partition(SHARD)[0] + SHARD for path in found})

    def _ahead(self, own: set[str], slots: int) -> list[str]:
        """Return the next training shards, from the reader's position, that need a slot."""
        if self._position is None:
            return []
        around = (*self.training[self._position :], *self.training[: self._position])
        return [name for name in around if name not in own][:slots]

    def _drop(self, cached: list[str], count: int, keep: list[str]) -> bool:
        """Delete ``count`` cached shards, longest unused first; False if too few may go."""
        if count <= 0:
            return True
        droppable = [name for name in cached if name not in keep and not self._in_use[name]]
        for name in sorted(droppable, key=self._distance)[:count]:
            path = self._cache / name
            path.unlink(missing_ok=True)
            partial(path).unlink(missing_ok=True)
            cached.remove(name)
        return len(droppable) >= count

    def _distance(self, name: str) -> int:
        """Return the number of shards from the reader's position forward to ``name``.

        The shard just left is the farthest: a run that resumes at an earlier step may need it.
        """
        if name not in self._index:
            return -1
        return (self._index[name] - (self._position or 0)) % len(self.training)
