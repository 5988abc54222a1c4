"""The runs of a home: how far each is, whether it lives, and what it has saved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxchat.checkpoint import store
from mlxchat.home import Home
from mlxchat.monitor.log import Log
from mlxchat.telemetry.events import Stepped
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import Process, Status, read_status, status_path

SILENT_SECONDS = 60.0  # without a sign of life; a status comes every other second

State = Literal["running", "silent", "finished", "interrupted", "failed", "died"]


@dataclass(frozen=True)
class Run:
    """A run at a glance.

    ``state`` is ``died`` where its process has gone without a word, and ``silent`` where there has
    been no sign of life for a while and nothing says that it has gone: its process hangs, or ran on
    another host, or was that of a version that published nothing.
    """

    tag: str
    state: State
    heard: float | None  # time of the last sign of life; None where there was never any
    meter: Meter
    latest: Stepped | None
    status: Status | None
    saved_steps: tuple[int, ...]  # the checkpoints on disk, ascending
    saved: float | None  # when the newest of them was made

    @property
    def began(self) -> float:
        """When its process did, or else the run; 0 where neither is known."""
        if self.status:
            return self.status.process.started
        return self.meter.started.time if self.meter.started else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Until its last step; None where it does not run or its pace is not known yet."""
        left = self.meter.seconds_left
        if self.state != "running" or left is None or self.latest is None:
            return None
        waited = min(max(0.0, now - self.latest.time), self.meter.seconds_per_step or 0.0)
        return max(0.0, left - waited)


class Runs:
    """Reads the runs of a home again and again, of their logs only what is new.

    Args:
        host: the name of this machine.
        lives: whether a process of this machine still runs.
    """

    def __init__(self, home: Home, host: str, lives: Callable[[Process], bool]) -> None:
        self._home, self._host, self._lives = home, host, lives
        self._logs: dict[str, Log] = {}

    def read(self, now: float) -> list[Run]:
        """All runs, in the order of their beginning."""
        tags = _tags(self._home.root / "logs")
        self._logs = {tag: self._logs.get(tag) or Log(self._home.log(tag)) for tag in tags}
        runs = [self._run(tag, log, now) for tag, log in self._logs.items()]
        return sorted(runs, key=lambda run: (run.began, run.tag))

    def _run(self, tag: str, log: Log, now: float) -> Run:
        status = read_status(status_path(self._home.log(tag)))
        log.read()
        signs = [log.time, status.time if status else None]
        heard = max((sign for sign in signs if sign is not None), default=None)
        steps, saved = _saved(self._home.run(tag))
        state = self._state(log.ending, status, heard, now)
        return Run(tag, state, heard, log.meter, log.latest, status, steps, saved)

    def _state(
        self, ending: str | None, status: Status | None, heard: float | None, now: float
    ) -> State:
        if status and status.ended:
            return status.ended
        if ending:
            return "finished" if ending == "finished" else "interrupted"
        here = status is not None and status.process.host == self._host
        if status and here and not self._lives(status.process):
            return "died"
        return "silent" if heard is None or now - heard > SILENT_SECONDS else "running"


def _tags(logs: Path) -> list[str]:
    try:
        return sorted(path.name for path in logs.iterdir() if path.is_dir())
    except OSError:
        return []


def _saved(run: Path) -> tuple[tuple[int, ...], float | None]:
    """The steps that are saved, and when the newest was."""
    try:
        steps = tuple(store.steps(run))
        newest = store.directory(run, steps[-1]).stat().st_mtime if steps else None
    except OSError:
        return (), None
    return steps, newest
