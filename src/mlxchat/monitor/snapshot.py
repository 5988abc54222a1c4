"""All that a monitor shows, at one moment."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from mlxchat.home import Home
from mlxchat.monitor.machine import Disk, Machine, Program, disk, lives, machine, programs
from mlxchat.monitor.runs import Run, Runs
from mlxchat.telemetry.status import Process

DISK_SECONDS = 10.0  # from one sum of all files to the next


@dataclass(frozen=True)
class Snapshot:
    """A home and its machine at a moment."""

    time: float  # seconds since the epoch
    home: str
    machine: Machine
    disk: Disk
    runs: tuple[Run, ...]
    programs: tuple[Program, ...]


class Monitor:
    """Looks at a home and at this machine.

    Args:
        home: whose runs and files are looked at; processes are those of the whole machine.
        clock: seconds since the epoch.
        machine, programs, lives: tell of the system.
    """

    def __init__(
        self,
        home: Home,
        clock: Callable[[], float] = time.time,
        machine: Callable[[], Machine] = machine,
        programs: Callable[[], list[Program]] = programs,
        lives: Callable[[Process], bool] = lives,
    ) -> None:
        self._home, self._clock = home, clock
        self._machine, self._programs = machine, programs
        self._runs = Runs(home, machine().host, lives)
        self._disk: tuple[float, Disk] | None = None

    def look(self) -> Snapshot:
        """How things are now."""
        now = self._clock()
        if self._disk is None or now - self._disk[0] >= DISK_SECONDS:
            self._disk = now, disk(self._home)
        return Snapshot(
            now,
            str(self._home.root),
            self._machine(),
            self._disk[1],
            tuple(self._runs.read(now)),
            tuple(self._programs()),
        )


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """Plain values for `json.dumps`: bytes, seconds, and None for what is not known."""
    return {
        "time": snapshot.time,
        "home": snapshot.home,
        "machine": {**asdict(snapshot.machine), "full": snapshot.machine.full},
        "disk": asdict(snapshot.disk),
        "runs": [_run(run, snapshot.time) for run in snapshot.runs],
        "processes": [asdict(program) for program in snapshot.programs],
    }


def _run(run: Run, now: float) -> dict[str, Any]:
    meter = run.meter
    return {
        "tag": run.tag,
        "state": run.state,
        "last_sign_of_life": run.heard,
        "step": meter.step,
        "total_steps": meter.total_steps,
        "loss": meter.loss,
        "diverged": run.latest is not None and not math.isfinite(run.latest.loss),
        "bits_per_byte": meter.bits_per_byte,
        "tokens_per_second": meter.tokens_per_second if run.state == "running" else None,
        "elapsed": meter.elapsed,
        "seconds_left": run.seconds_left(now),
        "loss_curve": [list(point) for point in meter.losses],
        "saved_steps": list(run.saved_steps),
        "status": asdict(run.status) if run.status else None,
    }
