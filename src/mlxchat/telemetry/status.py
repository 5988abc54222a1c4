"""The status of a run: a small file beside its log, replaced every two seconds.

The log holds what has happened. The status says which process is training, that it is alive and how
much memory it uses, even during a step that takes minutes, and how the run ended unless it was
killed.
"""

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

import psutil
from pydantic import Field, TypeAdapter

from mlxchat.disk import read_regular, replacing
from mlxchat.errors import MlxchatError
from mlxchat.json_text import as_type, parse_json
from mlxchat.system import identity
from mlxchat.telemetry.clock import TimeOfDay
from mlxchat.telemetry.events import (
    Count,
    Drawing,
    Ended,
    Evaluating,
    Event,
    Memory,
    Progressed,
    Sampled,
    Started,
    Stepped,
    Time,
)
from mlxchat.telemetry.meter import Meter

INTERVAL = 2.0  # seconds between two writes
MOST_STATUS = 2**16  # bytes; most of them are an error message

Ending = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Process:
    """A process, identified by its id, its start time and its machine (ids are reused)."""

    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started: Time  # seconds since the epoch, according to the system
    host: str  # the machine's name, which may change while the process runs
    machine: str | None = None  # its `mlxchat.system.identity`; None in older statuses
    booted: Time | None = None  # when the machine started, by the clock that says ``started``

    def runs_on(self, machine: str, host: str) -> bool:
        """Return whether it is a process of the machine of that identity and that name."""
        return self.host == host if self.machine is None else self.machine == machine


@dataclass(frozen=True)
class Status:
    """The status of a run, written by its process."""

    time: Time  # when it was written, seconds since the epoch
    process: Process
    activity: str  # "training", "evaluating 3/40", "sampling"
    step: Count
    total_steps: Count
    memory: Memory
    ended: Ending | None = None  # None while it runs, and after it was killed
    failure: str | None = None  # the error message, if it failed


_STATUS = TypeAdapter(Status)

_open: set["StatusFile"] = set()  # of the runs of this process
_PATIENCE = 0.5  # seconds for a disk before an exit

# All else that is no `Exception` has failed too, such as a panic in an extension written in Rust.
_INTERRUPTING = (KeyboardInterrupt, SystemExit, GeneratorExit)


def this_process() -> Process:
    """Return the current process."""
    booted, started = psutil.boot_time(), psutil.Process().create_time()
    return Process(os.getpid(), started, socket.gethostname(), identity(), booted)


def status_path(log: Path) -> Path:
    """Return the path of the status file that belongs to a log."""
    return log.with_name("status.json")


def read_status(path: Path) -> Status | None:
    """Return the last status of a run; None if it has none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one that a run writes.
    """
    try:
        return as_type(parse_json(read_regular(path, MOST_STATUS)), _STATUS)
    except (FileNotFoundError, NotADirectoryError):
        return None


def note_interruption() -> None:
    """Write into the statuses of this process's runs that they were interrupted, if unfinished.

    This is for an exit that runs no clean-up. A disk that hangs does not delay it for long.
    """
    for status in tuple(_open):
        writing = threading.Thread(target=status.interrupt, daemon=True)
        writing.start()
        writing.join(_PATIENCE)


class StatusFile:
    """Writes the status of a run within its context: at once, every ``interval``, and at the end.

    A thread writes it, so that a slow disk does not delay training. A status that cannot be written
    is skipped, because it is no reason to end a run.

    Args:
        path: the file.
        meter: the run's meter, which folds in each event before `update` receives it.
        memory: returns the current memory use; called from another thread.
        clock: returns seconds since the epoch.
        process: the process of the run; None for the current one.
        interval: seconds between two writes.
    """

    def __init__(
        self,
        path: Path,
        meter: Meter,
        memory: Callable[[], Memory],
        clock: TimeOfDay,
        process: Process | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._path, self._meter, self._memory, self._clock = path, meter, memory, clock
        self._process = process or this_process()
        self._interval = interval
        self._activity = "training"
        self._ended: Ending | None = None
        self._failure: str | None = None
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def update(self, event: Event) -> None:
        """Note what the run is doing, from its latest event."""
        match event:
            case Evaluating():
                self._activity = f"evaluating {event.batch:,}/{event.batches:,}"
            case Drawing():
                self._activity = event.in_words
            case Progressed(total=int(total)) if total:
                self._activity = f"{event.task} {event.done / total:.0%}"
            case Sampled():
                self._activity = "sampling"
            case Started() | Stepped():
                self._activity = "training"
            case Ended():
                self._ended = "finished" if event.reason == "finished" else "interrupted"

    def write(self) -> None:
        """Replace the file with the current status."""
        with self._writing:
            status = Status(
                self._clock(),
                self._process,
                self._activity,
                self._meter.step,
                self._meter.total_steps,
                self._memory(),
                self._ended,
                self._failure,
            )
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self._path) as partial:
                    partial.write_text(json.dumps(asdict(status)), encoding="utf-8")

    def interrupt(self) -> None:
        """Write that the run was interrupted, unless it has ended in another way."""
        self._ended = self._ended or "interrupted"
        self.write()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self.write()

    def __enter__(self) -> "StatusFile":
        self.write()
        _open.add(self)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        if error is not None and not isinstance(error, _INTERRUPTING):
            problem = error.problem if isinstance(error, MlxchatError) else str(error)
            self._ended, self._failure = "failed", problem or type(error).__name__
        self.interrupt()
        _open.discard(self)
