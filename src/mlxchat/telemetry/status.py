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
from typing import Literal

import psutil
from pydantic import TypeAdapter

from mlxchat.errors import MlxchatError
from mlxchat.telemetry.events import (
    Ended,
    Evaluating,
    Event,
    Memory,
    Sampled,
    Started,
    Stepped,
)
from mlxchat.telemetry.meter import Meter

INTERVAL = 2.0  # seconds between two writes

Ending = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Process:
    """A process, identified by its id, its start time and its host (ids are reused)."""

    pid: int
    started: float  # seconds since the epoch, according to the system
    host: str


@dataclass(frozen=True)
class Status:
    """The status of a run, written by its process."""

    time: float  # when it was written, seconds since the epoch
    process: Process
    activity: str  # "training", "evaluating 3/40", "sampling"
    step: int
    total_steps: int
    memory: Memory
    ended: Ending | None = None  # None while it runs, and after it was killed
    failure: str | None = None  # the error message, if it failed


_STATUS = TypeAdapter(Status)


def this_process() -> Process:
    """Return the current process."""
    return Process(os.getpid(), psutil.Process().create_time(), socket.gethostname())


def status_path(log: Path) -> Path:
    """Return the path of the status file that belongs to a log."""
    return log.with_name("status.json")


def read_status(path: Path) -> Status | None:
    """Return the last status of a run, or None if it has none or it cannot be read."""
    try:
        return _STATUS.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


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
        clock: Callable[[], float],
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
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def update(self, event: Event) -> None:
        """Note what the run is doing, from its latest event."""
        match event:
            case Evaluating():
                self._activity = f"evaluating {event.batch:,}/{event.batches:,}"
            case Sampled():
                self._activity = "sampling"
            case Started() | Stepped():
                self._activity = "training"
            case Ended():
                self._ended = "finished" if event.reason == "finished" else "interrupted"

    def write(self) -> None:
        """Replace the file with the current status."""
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
        partial = self._path.with_name(f"{self._path.name}.partial")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(asdict(status)), encoding="utf-8")
            partial.replace(self._path)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            self.write()

    def __enter__(self) -> "StatusFile":
        self.write()
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
        if isinstance(error, Exception):
            problem = error.problem if isinstance(error, MlxchatError) else str(error)
            self._ended, self._failure = "failed", problem or type(error).__name__
        else:
            self._ended = self._ended or "interrupted"
        self.write()
