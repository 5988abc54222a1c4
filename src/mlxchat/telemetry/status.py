"""What a run says of itself while it goes on: a small file beside its log, replaced whole.

The log tells what has happened. This file tells which process is at it, that it still is, and in
how much memory, also during a step that takes minutes; and how it ended, unless it was killed.
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
    Clock,
    Ended,
    Evaluating,
    Event,
    Memory,
    Sampled,
    Started,
    Stepped,
)
from mlxchat.telemetry.meter import Meter

INTERVAL = 2.0  # seconds from one writing to the next

Ending = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Process:
    """A process: its id on a host, and when it began, which a later one of that id did not."""

    pid: int
    started: float  # seconds since the epoch, as the system says
    host: str


@dataclass(frozen=True)
class Status:
    """A run as its process sees it."""

    time: float  # of the writing, seconds since the epoch
    process: Process
    activity: str  # "training", "evaluating 3/40", "sampling"
    step: int
    total_steps: int
    memory: Memory
    ended: Ending | None = None  # None while it goes on, and after a kill
    failure: str | None = None  # what is wrong, where it failed


_STATUS = TypeAdapter(Status)


def this_process() -> Process:
    """The one that asks."""
    return Process(os.getpid(), psutil.Process().create_time(), socket.gethostname())


def status_path(log: Path) -> Path:
    """The file beside a run's log."""
    return log.with_name("status.json")


def read_status(path: Path) -> Status | None:
    """What a run last said, None where there is nothing that can be read."""
    try:
        return _STATUS.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


class Publisher:
    """Writes a run's status within its context: at once, every other second, and at the end.

    A thread writes, so that a slow disk holds no training up; and a status that cannot be written
    is left out, for it is no reason to end a run.

    Args:
        path: the file.
        meter: of the run, which folds each event before `update` is called with it.
        memory: tells of the memory as it is now, from any thread.
        clock: seconds since the epoch.
        process: what is published as the run's process.
    """

    def __init__(
        self,
        path: Path,
        meter: Meter,
        memory: Callable[[], Memory],
        clock: Clock,
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
        """Take in what the run does now."""
        match event:
            case Evaluating():
                self._activity = f"evaluating {event.batch:,}/{event.batches:,}"
            case Sampled():
                self._activity = "sampling"
            case Started() | Stepped():
                self._activity = "training"
            case Ended():
                self._ended = "finished" if event.reason == "finished" else "interrupted"

    def publish(self) -> None:
        """Replace the file."""
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
            self.publish()

    def __enter__(self) -> "Publisher":
        self.publish()
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
        self.publish()
