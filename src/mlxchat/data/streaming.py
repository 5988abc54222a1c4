"""Training shards fetched ahead of their use, and dropped behind it.

A thread keeps the shards that the reader needs next on disk, in the order of an epoch and around
again, and never more than it was allowed: it makes room before it downloads. Shards it fetched are
marked by an empty file each in ``.streamed/``, which outlasts the process; only those are ever
deleted, so files that someone else put into the folder stay.
"""

import fcntl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlxchat.data.fetch import download_shard, missing_bytes, require_space
from mlxchat.data.hub import Cancelled, Hub, storing
from mlxchat.data.shards import STREAMED, Dataset, Report, check_shard, shard_names
from mlxchat.errors import MlxchatError
from mlxchat.telemetry import Noted, Progressed

LEAST_CACHED = 2  # one to read and one to fetch meanwhile
RETRY_SECONDS = 30.0  # until a shard that nobody waits for is tried again
CLOSE_SECONDS = 5.0  # that closing waits for a transfer to stop


class StreamingShards:
    """A `ShardSource` of a whole dataset through a small folder.

    Args:
        folder: of the dataset, created where it is missing.
        dataset: on the hub.
        max_cached: training shards on disk at a time, with the one that is being downloaded; the
            validation shard comes on top. Files that were there before count, but are never
            dropped; two are always allowed beside them.
        hub: to download from.
        report: gets progress in bytes and why it waits, also from the thread that downloads.
        num_shards: how many training shards there are to go through; None for all.
        clock: seconds since the epoch.

    Raises:
        MlxchatError: ``max_cached`` is less than 2, the dataset has no ``num_shards``, or another
            process streams into the same folder.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        max_cached: int,
        hub: Hub,
        report: Report,
        num_shards: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_cached < LEAST_CACHED:
            raise MlxchatError(
                f"--max-cached-shards {max_cached} is too few: one shard is read while the next "
                "is fetched.",
                f"Give {LEAST_CACHED} or more.",
            )
        self.training = dataset.training(num_shards)
        self.validation = dataset.validation
        self._index = {name: index for index, name in enumerate(self.training)}
        self._folder, self._dataset, self._max_cached = folder, dataset, max_cached
        self._report, self._clock = report, clock
        self._stop = threading.Event()
        self._hub = replace(hub.until(self._stop), note=self._note)
        self._marks = folder / STREAMED
        with storing(folder):
            self._marks.mkdir(parents=True, exist_ok=True)
            self._lock_file = (self._marks / "lock").open("a")
        self._claim_folder()
        self._forget_missing()

        self._changed = threading.Condition()  # guards what follows
        self._position: int | None = None  # of the reader; until known, nothing comes ahead
        self._in_use: Counter[str] = Counter()
        self._wanted: list[str] = []  # what readers wait for, first come first served
        self._failures: dict[str, tuple[float, MlxchatError]] = {}
        self._thread = threading.Thread(target=self._run, name="streaming", daemon=True)
        self._thread.start()

    def acquire(self, name: str) -> Path:
        """Block until the shard is on disk; it stays until released.

        Who holds ``max_cached`` shards and asks for another waits until one is released.

        Raises:
            MlxchatError: it cannot be had, is no shard, or the source was closed meanwhile.
        """
        path = self._folder / name
        if not path.is_file():
            self._note(f"Waiting for {name}.")
        with self._changed:
            self._in_use[name] += 1
            self._position = self._index.get(name, self._position)
            self._failures.pop(name, None)
            self._wanted.append(name)
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: path.is_file() or self._hopeless(name))
                if not path.is_file():
                    raise self._failure(name)
                check_shard(path)
            except BaseException:
                self._in_use[name] -= 1
                raise
            finally:
                self._wanted.remove(name)
        return path

    def release(self, name: str) -> None:
        """Say that the reader has moved on: the shard may be dropped."""
        with self._changed:
            self._in_use[name] -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop downloading; what came of a shard stays, and is gone on with next time."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        self._lock_file.close()

    def _note(self, text: str) -> None:
        self._report(Noted(self._clock(), text))

    def _hopeless(self, name: str) -> bool:
        return name in self._failures or self._stop.is_set()

    def _failure(self, name: str) -> MlxchatError:
        if name in self._failures:
            return self._failures[name][1]
        return MlxchatError(f"Fetching stopped before {name} came.", "Run the same command again.")

    def _claim_folder(self) -> None:
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.close()
            raise MlxchatError(
                f"Another run streams into {self._folder}, and would drop what this one reads.",
                "Wait for it to end, or give this run another MLXCHAT_HOME.",
            ) from None

    def _forget_missing(self) -> None:
        """Drop the marks of shards that are gone, so that they are not taken for ours later."""
        for name in self._streamed():
            path = self._folder / name
            if not path.exists() and not self._hub.partial(path).exists():
                (self._marks / name).unlink()

    def _streamed(self) -> list[str]:
        """The shards that streaming brought, or is bringing."""
        return shard_names(self._marks)

    def _run(self) -> None:
        """Download what is needed next, until closed."""
        try:
            while not self._stop.is_set():
                with self._changed:
                    name = self._next()
                    if name is None:
                        self._changed.wait(RETRY_SECONDS)
                        continue
                self._download(name)
        except Cancelled:
            return
        finally:  # whatever ended this thread, nobody may wait for it
            self._stop.set()
            with self._changed:
                self._changed.notify_all()

    def _download(self, name: str) -> None:
        path = self._folder / name

        def progressed(done: int) -> None:
            self._report(Progressed(self._clock(), name, done, remote.size, "bytes"))

        failure = None
        try:
            remote = self._hub.stat(self._dataset.repo, name)
            require_space(self._folder, missing_bytes(self._hub, remote, path))
            download_shard(self._hub, remote, path, progressed)
        except MlxchatError as error:
            failure = error
        with self._changed:
            if failure:
                self._failures[name] = (self._clock() + RETRY_SECONDS, failure)
            self._changed.notify_all()

    def _next(self) -> str | None:
        """What to download now, with room made and marked for it; None while there is nothing."""
        streamed = self._streamed()
        own = set(shard_names(self._folder)) - set(streamed) - {self.validation}
        slots = max(self._max_cached - len(own), LEAST_CACHED)
        ahead = self._ahead(own, slots)
        self._drop(streamed, len(streamed) - slots, keep=ahead)  # where fewer are allowed now
        now = self._clock()
        for name in (*self._wanted, self.validation, *ahead):
            failed = name in self._failures and now < self._failures[name][0]
            if failed or (self._folder / name).is_file():
                continue
            if name == self.validation or name in streamed:
                return name
            if self._drop(streamed, len(streamed) + 1 - slots, keep=ahead):
                (self._marks / name).touch()
                return name
        return None

    def _ahead(self, own: set[str], slots: int) -> list[str]:
        """The next training shards from the reader's position on that take a slot each."""
        if self._position is None:
            return []
        around = (*self.training[self._position :], *self.training[: self._position])
        return [name for name in around if name not in own][:slots]

    def _drop(self, streamed: list[str], count: int, keep: list[str]) -> bool:
        """Delete ``count`` streamed shards, longest unused first; False where too few may go."""
        if count <= 0:
            return True
        droppable = [name for name in streamed if name not in keep and not self._in_use[name]]
        for name in sorted(droppable, key=self._distance)[:count]:
            path = self._folder / name
            path.unlink(missing_ok=True)
            self._hub.partial(path).unlink(missing_ok=True)
            (self._marks / name).unlink(missing_ok=True)
            streamed.remove(name)
        return len(droppable) >= count

    def _distance(self, name: str) -> int:
        """Shards from the reader's position forward, around the end, to ``name``.

        The shard just left is the farthest: a run that resumes at an earlier step may need it.
        """
        if name not in self._index:
            return -1
        return (self._index[name] - (self._position or 0)) % len(self.training)
