"""Watches the runs of a home: the progress, state and checkpoints of each.

`Monitor.snapshot` returns a `Snapshot` of the runs, the machine and the disk. Of each log only the
new lines are read. A run whose files cannot be read, or contain what no run writes, is shown as
unreadable, beside the others.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from mlxchat.checkpoint import store
from mlxchat.checkpoint.files import damaged, in_words, unreadable
from mlxchat.checkpoint.stamp import saved_at
from mlxchat.disk import open_regular
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.monitor.machine import (
    Disk,
    HostMemory,
    MlxchatProcess,
    disk,
    host_memory,
    lives,
    mlxchat_processes,
)
from mlxchat.system import identity
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock, Timer
from mlxchat.telemetry.events import Ended, Started, Stepped, event_from_json
from mlxchat.telemetry.log import MOST_LINE
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import Process, Status, read_status, status_path


class Log:
    """The log of a run, read as it grows; `read` continues where it stopped.

    Attributes:
        meter: the events, folded.
        latest: the last step.
        ending: how the run ended according to its log; None while it runs.
        time: when the last event happened, seconds since the epoch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode of the file that was read
        self._forget()

    def _forget(self) -> None:
        self._offset, self._lines = 0, 0
        self.meter = Meter()
        self.latest: Stepped | None = None
        self.ending: str | None = None
        self.time: float | None = None

    def read(self) -> None:
        """Read the new lines, or all of them if the file was replaced.

        An incomplete last line is left for the next time; lines that are no events, or of another
        version, are skipped. If the file is gone, nothing changes.

        Raises:
            OSError: it cannot be read.
            ValueError: a line, which is named, has a value that no run writes, or is too long.
        """
        try:
            file = open_regular(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with file:
            facts = os.fstat(file.fileno())
            identity = (facts.st_dev, facts.st_ino)
            if identity != self._file or facts.st_size < self._offset:
                self._forget()
                self._file = identity
            file.seek(self._offset)
            while (line := file.readline(MOST_LINE)).endswith(b"\n"):
                self._take(line)
                self._offset, self._lines = self._offset + len(line), self._lines + 1
        if len(line) == MOST_LINE:
            raise ValueError(f"line {self._lines + 1:,}: more than {MOST_LINE:,} bytes")

    def _take(self, line: bytes) -> None:
        try:
            event = event_from_json(line)
        except ValidationError as error:
            raise ValueError(f"line {self._lines + 1:,}: {in_words(error)}") from error
        except ValueError:
            return
        self.time = event.time
        match event:
            case Started():
                self.ending = None
            case Stepped():
                self.latest = event
            case Ended():
                self.ending = event.reason
        self.meter.update(event)


SILENT_SECONDS = 60.0  # without a sign of life; a status is written every two seconds
AHEAD_SECONDS = 86_400.0  # by which another machine's clock may be ahead of ours

State = Literal["running", "silent", "finished", "interrupted", "failed", "died", "unreadable"]
Found = TypeVar("Found")


@dataclass(frozen=True)
class WatchedRun:
    """A run at a glance.

    ``state`` is ``died`` if its process is gone without having ended the run. It is ``silent`` if
    there was no sign of life for a while but the process may exist: it hangs, or ran on another
    host, or belongs to a version that wrote no status. It is ``unreadable`` if its log or status
    cannot be read, or says what no run writes; of such a run only the checkpoints are known.
    """

    tag: str
    state: State
    last_seen: float | None  # time of the last sign of life; None if there was none
    meter: Meter
    latest: Stepped | None
    status: Status | None
    saved_steps: tuple[int, ...]  # the checkpoints on disk, ascending
    saved: float | None  # when the newest of them was made
    fault: str | None = None  # why it is unreadable

    @property
    def began(self) -> float:
        """The time at which its process started, or else the run; 0 if neither is known."""
        if self.status:
            return self.status.process.started
        return self.meter.started.time if self.meter.started else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds until its last step; None if it is not running or too new to tell."""
        left = self.meter.seconds_left
        if self.state != "running" or left is None or self.latest is None:
            return None
        waited = min(max(0.0, now - self.latest.time), self.meter.seconds_per_step or 0.0)
        return max(0.0, left - waited)


class Runs:
    """Reads the runs of a home again and again; of their logs, only what is new.

    Args:
        host: the name of this machine, which is an attribute: it may change.
        lives: returns whether a process of this machine is still running.
        machine: the identity of this machine; None for its name.
        timer: returns seconds since any origin.
    """

    def __init__(
        self,
        home: Home,
        host: str,
        lives: Callable[[Process], bool],
        machine: str | None = None,
        timer: Timer = SYSTEM_CLOCK.seconds,
    ) -> None:
        self.host = host
        self._home, self._lives = home, lives
        self._machine = machine or host
        self._timer = timer
        self._logs: dict[str, Log] = {}
        self._signs: dict[str, tuple[float | None, float]] = {}  # what was last seen, and when

    def read(self, now: float) -> list[WatchedRun]:
        """Return all runs, in the order they started."""
        tags = _tags(self._home.root / "logs")
        self._logs = {tag: self._logs.get(tag) or Log(self._home.log(tag)) for tag in tags}
        runs = [self._run(tag, log, now) for tag, log in self._logs.items()]
        return sorted(runs, key=lambda run: (run.began, run.tag))

    def _run(self, tag: str, log: Log, now: float) -> WatchedRun:
        path, steps = self._home.log(tag), _saved(self._home.run(tag))
        try:
            found = read_of_run(status_path(path), read_status)
            status = with_host_name(found, self._machine, self.host)
            read_of_run(path, lambda _: log.read())
            last_seen = last_sign(path, log.time, status, now)
            quiet = self._quiet(tag, last_seen, now)
        except MlxchatError as error:
            fault = error.problem
            return WatchedRun(tag, "unreadable", None, Meter(), None, None, *steps, fault)
        state = run_state(log.ending, status, quiet, self.host, self._lives)
        return WatchedRun(tag, state, last_seen, log.meter, log.latest, status, *steps)

    def _quiet(self, tag: str, last_seen: float | None, now: float) -> float:
        """Return for how many seconds a run has given no sign of life.

        At first that follows from the time of its last sign. From then on only new signs count,
        because this machine's clock may be set, and another's may be wrong.
        """
        seconds = self._timer()
        if tag not in self._signs:
            age = math.inf if last_seen is None else max(0.0, now - last_seen)
            self._signs[tag] = last_seen, seconds - age
        elif self._signs[tag][0] != last_seen:
            self._signs[tag] = last_seen, seconds
        return seconds - self._signs[tag][1]


def run_state(
    ending: str | None,
    status: Status | None,
    quiet: float,
    host: str,
    lives: Callable[[Process], bool],
) -> State:
    """Return the state of a run whose log and status can be read.

    Args:
        ending: how the run ended according to its log; None if it did not.
        status: its last status; None if it has none.
        quiet: for how many seconds it has given no sign of life.
        host: the name of this machine.
        lives: returns whether a process of this machine is still running.
    """
    if status and status.ended:
        return status.ended
    if ending:
        return "finished" if ending == "finished" else "interrupted"
    if status and status.process.host == host and not lives(status.process):
        return "died"
    return "silent" if quiet > SILENT_SECONDS else "running"


def with_host_name(status: Status | None, machine: str, host: str) -> Status | None:
    """Return a status with a machine's present name, if its process is of that machine."""
    if status is None or not status.process.runs_on(machine, host):
        return status
    return replace(status, process=replace(status.process, host=host))


def read_of_run(path: Path, read: Callable[[Path], Found]) -> Found:
    """Return what ``read`` makes of a file.

    Raises:
        MlxchatError: it cannot be read, or says what no run writes.
    """
    try:
        return read(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise damaged(path, error) from error


def last_sign(path: Path, logged: float | None, status: Status | None, now: float) -> float | None:
    """Return the time of a run's last sign of life; None if there was none.

    A status is at most a few seconds older than the log. Where the clock was set back, the times of
    the log are ahead, so the status counts.

    Args:
        path: the log.
        logged: the time of its last event; None if there is none.
        status: the run's last status; None if it has none.
        now: seconds since the epoch.

    Raises:
        MlxchatError: it is far in the future.
    """
    last_seen = status.time if status else logged
    if last_seen is not None and last_seen > now + AHEAD_SECONDS:
        raise damaged(path.parent, "its times are more than a day ahead")
    return last_seen


def _tags(logs: Path) -> list[str]:
    """Return the names of the folders of logs; one that is being copied is hidden."""
    try:
        return sorted(
            path.name
            for path in logs.iterdir()
            if not path.name.startswith(".") and os.path.isdir(path)  # noqa: PTH112
        )
    except OSError:
        return []


def _saved(run: Path) -> tuple[tuple[int, ...], float | None]:
    """Return the checkpoints, and when the newest was saved."""
    try:
        steps = tuple(store.steps(run))
        newest = saved_at(store.directory(run, steps[-1]), steps[-1]) if steps else None
    except OSError:
        return (), None
    return steps, newest


DISK_SECONDS = 10.0  # between two measurements of all files


@dataclass(frozen=True)
class Snapshot:
    """The state of a home and its machine at one moment."""

    time: float  # seconds since the epoch
    home: str
    machine: HostMemory
    disk: Disk
    runs: tuple[WatchedRun, ...]
    processes: tuple[MlxchatProcess, ...]


class Monitor:
    """Observes a home and this machine.

    Args:
        home: the home whose runs and files are shown; processes are those of the whole machine.
        clock: says how long ago things happened, and when to measure the disk again.
        memory, processes, lives: return the state of the system.
    """

    def __init__(
        self,
        home: Home,
        clock: Clock = SYSTEM_CLOCK,
        memory: Callable[[], HostMemory] = host_memory,
        processes: Callable[[], list[MlxchatProcess]] = mlxchat_processes,
        lives: Callable[[Process], bool] = lives,
    ) -> None:
        self._home, self._clock = home, clock
        self._memory, self._processes = memory, processes
        self._runs = Runs(home, memory().host, lives, identity(), clock.seconds)
        self._disk: tuple[float, Disk] | None = None

    def snapshot(self) -> Snapshot:
        """Return the current state."""
        now, seconds, machine = self._clock(), self._clock.seconds(), self._memory()
        self._runs.host = machine.host
        if self._disk is None or seconds - self._disk[0] >= DISK_SECONDS:
            self._disk = seconds, disk(self._home)
        return Snapshot(
            now,
            str(self._home.root),
            machine,
            self._disk[1],
            tuple(self._runs.read(now)),
            tuple(self._processes()),
        )


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as plain values for JSON: bytes, seconds, and None for the unknown."""
    return {
        "time": snapshot.time,
        "home": snapshot.home,
        "machine": {**asdict(snapshot.machine), "full": snapshot.machine.full},
        "disk": asdict(snapshot.disk),
        "runs": [_run(run, snapshot.time) for run in snapshot.runs],
        "processes": [asdict(process) for process in snapshot.processes],
    }


def _run(run: WatchedRun, now: float) -> dict[str, Any]:
    meter = run.meter
    return {
        "tag": run.tag,
        "state": run.state,
        "fault": run.fault,
        "last_sign_of_life": run.last_seen,
        "step": meter.step,
        "total_steps": meter.total_steps,
        "loss": meter.loss,
        "diverged": run.latest is not None and not math.isfinite(run.latest.loss),
        "bits_per_byte": meter.bits_per_byte,
        "best_step": meter.best and meter.best[0],
        "best_bits_per_byte": meter.best and meter.best[1],
        "core": [point._asdict() for point in meter.core],
        "tokens_per_second": meter.tokens_per_second if run.state == "running" else None,
        "elapsed": meter.elapsed,
        "seconds_left": run.seconds_left(now),
        "loss_curve": [list(point) for point in meter.losses],
        "saved_steps": list(run.saved_steps),
        "status": asdict(run.status) if run.status else None,
    }
