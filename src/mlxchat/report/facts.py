"""All that is known of a run: its log, its status, and the newest step that it has saved.

A run may be under way, and any of its files may be damaged or missing. What cannot be read is named
in `RunFacts.faults`; only a run of which there is nothing at all is an error.
"""

import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxchat.checkpoint import store
from mlxchat.checkpoint.files import TRAINER, files_with_checksums, model_files
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.run import RunConfig
from mlxchat.errors import MlxchatError, reason_of
from mlxchat.home import Home
from mlxchat.monitor.machine import lives
from mlxchat.monitor.runs import State, run_state, with_host_name
from mlxchat.report.places import RunPlaces, find_run
from mlxchat.report.runs import unlogged_state
from mlxchat.report.scores import StepResults, kept_results
from mlxchat.report.series import (
    EVALUATION_COLUMNS,
    REWARD_COLUMNS,
    STEP_COLUMNS,
    Columns,
    RunLogRead,
    Values,
    elapsed,
    read_run_log,
    smoothed,
)
from mlxchat.system import identity
from mlxchat.telemetry.events import CoreMeasured, Progressed, Report
from mlxchat.telemetry.status import Status, read_status, status_path
from mlxchat.train.stage import history_of, read_trainer

LEAST_STEP_SECONDS = 1e-9  # of a step; with fewer its log is damaged
LEAST_RATE_STEPS = 10  # with which the first of each process are left out of the speed


@dataclass(frozen=True)
class RunFacts:
    """A run, as a report shows it.

    Attributes:
        name: its name.
        stage: the stage of its training; None if there are no checkpoints that say.
        state: what it is doing, or how it ended; None for a model that was not trained as this
            run: imported, quantized or fused.
        log: its log; empty if there is none.
        status: its last status; None if there is none.
        folder: its newest checkpoint; None if there is none.
        trainer: the state saved there; None if that cannot be read.
        history: how its model came to be.
        checksums: sha256 of the weight files saved there.
        saved: the numbers of its checkpoints.
        tasks: the results of its checkpoints on tasks, ascending.
        faults: what could not be read, and why.
    """

    name: str
    stage: str | None
    state: State | None
    log: RunLogRead
    status: Status | None
    folder: Path | None
    trainer: TrainerState[RunConfig] | None
    history: History | None
    checksums: dict[str, str] = field(default_factory=dict)
    saved: tuple[int, ...] = ()
    tasks: tuple[StepResults, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether it learns from what it draws itself, so that steps have no fixed tokens."""
        return len(self.log.rewards) > 0 or self.stage == "reinforcement learning"

    @property
    def step(self) -> int:
        """The completed steps."""
        steps = self.log.steps.step
        candidates = [self.trainer.step if self.trainer else 0]
        candidates += [self.log.started.step if self.log.started else 0]
        return int(max(steps[-1] if len(steps) else 0, *candidates))

    @property
    def total_steps(self) -> int:
        """The steps of the whole run; 0 if nothing says."""
        return self.log.total_steps or (self.trainer.plan.num_iterations if self.trainer else 0)

    @property
    def tokens_per_step(self) -> int | None:
        """The tokens of a step; None if they differ from step to step, or are unknown."""
        if self.drawn:
            return None
        if self.log.started:
            return self.log.started.tokens_per_step
        return self.trainer.plan.tokens_per_step if self.trainer else None

    @property
    def flops_per_token(self) -> int | None:
        """The FLOPs of training on a token; None if unknown."""
        if self.log.started:
            return self.log.started.flops_per_token
        return self.trainer.plan.flops_per_token if self.trainer else None

    @property
    def tokens(self) -> int | None:
        """The tokens that it has been trained on."""
        return self.tokens_per_step and self.tokens_per_step * self.step

    @property
    def flops(self) -> float | None:
        """The FLOPs that this took, by the model's formula."""
        return self.flops_at(float(self.step))

    def flops_at(self, step: float) -> float | None:
        """Return the FLOPs of so many steps."""
        if not self.tokens_per_step or not self.flops_per_token:
            return None
        return step * self.tokens_per_step * self.flops_per_token

    @property
    def seconds(self) -> float:
        """The seconds of training, without evaluations and pauses."""
        until = elapsed(self.log.steps)
        if len(until) and until[-1]:
            return float(until[-1])
        return self.trainer.meter.elapsed if self.trainer else 0.0

    @property
    def bits_per_byte(self) -> Values:
        """The bits per byte of the evaluations."""
        return self.log.evaluations["bits_per_byte"]

    @property
    def last_evaluation(self) -> tuple[int, float] | None:
        """The last evaluation: step and bits per byte."""
        return self._evaluation(lambda bits: np.flatnonzero(np.isfinite(bits))[-1])

    @property
    def best(self) -> tuple[int, float] | None:
        """The evaluation with the lowest bits per byte: step and bits."""
        return self._evaluation(np.nanargmin)

    def _evaluation(self, chosen: Callable[[Values], Any]) -> tuple[int, float] | None:
        bits = self.bits_per_byte
        if not np.isfinite(bits).any():
            return None
        place = int(chosen(bits))
        return int(self.log.evaluations.step[place]), float(bits[place])

    @property
    def final_bits(self) -> float | None:
        """The bits per byte of the last evaluation."""
        return self.last_evaluation[1] if self.last_evaluation else None

    @property
    def average_reward(self) -> float | None:
        """The exponential average of the rewards, at the end."""
        rewards = self.log.rewards["reward"]
        average = rewards if self.log.averaged else smoothed(rewards)
        return float(average[-1]) if len(average) else None

    @property
    def seconds_per_step(self) -> float | None:
        """The mean of all steps but the first of each process, which compiles."""
        timed = self._timed
        return float(self.log.steps["seconds"][timed].mean()) if timed.any() else None

    @property
    def _timed(self) -> npt.NDArray[np.bool_]:
        """A mask of the steps that the speed is measured by."""
        steps, seconds = self.log.steps.step, self.log.steps["seconds"]
        known = np.isfinite(seconds) & (seconds > LEAST_STEP_SECONDS)
        first = np.isin(steps, [start.step + 1 for start in self.log.starts])
        rest = known & ~first
        return rest if rest.sum() >= LEAST_RATE_STEPS else known

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of training."""
        seconds, tokens = self.seconds_per_step, self.tokens_per_step
        return tokens / seconds if tokens and seconds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation by the chip's data sheet; None if that is unknown."""
        return self._share_of([start.peak_flops for start in self.log.starts])

    @property
    def matmul_share(self) -> float | None:
        """The FLOP/s as a share of a matrix product's, as measured on that machine."""
        return self._share_of([start.matmul_flops for start in self.log.starts])

    def _share_of(self, most: Sequence[float | None]) -> float | None:
        """Return the FLOPs as a share of those that each process could have done in its time."""
        per_step, timed = self.flops_at(1.0), self._timed
        if not per_step or not timed.any() or not most:
            return None
        begun = np.array([start.step for start in self.log.starts])
        process = np.searchsorted(begun, self.log.steps.step[timed] - 1, side="right") - 1
        rates = np.array([rate or math.nan for rate in most])[process]
        possible = float((self.log.steps["seconds"][timed] * rates).sum())
        share = per_step * float(timed.sum()) / possible if possible else math.nan
        return share if math.isfinite(share) else None

    @property
    def peak_memory(self) -> int:
        """The most bytes of MLX; 0 if unknown."""
        peak = self.log.steps["peak"]
        known = peak[np.isfinite(peak)]
        saved = self.trainer.meter.peak_memory if self.trainer else 0
        return int(known.max()) if len(known) else saved

    @property
    def device(self) -> str | None:
        """The device that it was trained on, or the last one of several."""
        return self.log.started.where if self.log.started else None

    @property
    def software(self) -> tuple[str, ...]:
        """Python and the operating system of its processes, each once; empty of older logs."""
        named = (start.software for start in self.log.starts)
        return tuple(dict.fromkeys(filter(None, named)))

    @property
    def parameters(self) -> int | None:
        """The parameters of the model."""
        if self.log.started:
            return self.log.started.parameters
        return self.trainer.plan.parameters if self.trainer else None

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the last step; None unless it runs."""
        seconds = self.seconds_per_step
        if self.state != "running" or seconds is None:
            return None
        return max(0, self.total_steps - self.step) * seconds


def read_facts(
    home: Home,
    name: str,
    now: Callable[[], float] = time.time,
    report: Report = lambda _: None,
) -> RunFacts:
    """Read all that there is of a run.

    Args:
        home: where it is.
        name: its name.
        now: returns the time of day, by which a run without a sign of life is told.
        report: receives the progress of reading a long log.

    Raises:
        NotFound: there is nothing of such a run.
        ConfigError: two stages have a run of that name.
        MlxchatError: a folder of runs cannot be read.
    """
    places, path = find_run(home, name), home.log(name)
    steps = tuple(store.require_steps(places.folder)) if places.folder else ()
    newest = store.directory(places.folder, steps[-1]) if places.folder and steps else None
    faults: list[str] = []
    log = _log(path, faults, report) if places.log else RunLogRead()
    status = None
    try:
        status = read_status(status_path(path))
    except OSError as error:
        faults.append(f"Its status cannot be read: {reason_of(error)}.")
    except ValueError:
        faults.append("Its status is damaged.")
    tasks, unread = kept_results(home, places, steps)
    faults += unread
    trainer, history, sums = _saved_state(newest, home, faults)
    if trainer is not None and not len(log.evaluations) and not len(log.steps):
        log = _from_meter(log, trainer, faults)
    stage = trainer.stage if trainer else places.stage
    return RunFacts(
        name=name,
        stage=stage,
        state=_state(places, log, status, trainer, newest, now()),
        log=log,
        status=status,
        folder=newest,
        trainer=trainer,
        history=history,
        checksums=sums,
        saved=steps,
        tasks=tasks,
        faults=tuple(faults),
    )


def _log(path: Path, faults: list[str], report: Report) -> RunLogRead:
    def read_so_far(done: int) -> None:
        total = max(done, path.stat().st_size)
        report(Progressed(time.time(), path.parent.name, done, total, "bytes"))

    try:
        log = read_run_log(path, read_so_far)
    except OSError as error:
        faults.append(f"Its log cannot be read: {reason_of(error)}.")
        return RunLogRead()
    if log.damaged:
        lines = "1 line" if log.damaged == 1 else f"{log.damaged:,} lines"
        of = f"of {log.lines:,} in its log"
        faults.append(f"{lines} {of} cannot be read; the curves show the rest.")
    return log


def _saved_state(
    newest: Path | None, home: Home, faults: list[str]
) -> tuple[TrainerState[RunConfig] | None, History | None, dict[str, str]]:
    """Return the trainer's state, the history and the checksums of a checkpoint."""
    if newest is None:
        return None, None, {}
    trainer, history, sums = None, None, dict[str, str]()
    try:
        history = history_of(newest, home)
        listed = files_with_checksums(newest)
        names = {file.name for file in model_files(newest)} | {"adapters.safetensors"}
        sums = {name: digest for name, digest in listed.items() if name in names}
        trainer = read_trainer(newest) if (newest / TRAINER).exists() else None
    except MlxchatError as error:
        faults.append(error.problem)
    except OSError as error:
        faults.append(f"{newest.name} cannot be read: {reason_of(error)}.")
    return trainer, history, sums


def _from_meter(log: RunLogRead, trainer: TrainerState[Any], faults: list[str]) -> RunLogRead:
    """Return a log with the curves that a checkpoint has, which are thinned."""
    meter = trainer.meter
    faults.append("Its log has no steps: the curves are those stored in its newest checkpoint.")
    core = [CoreMeasured(log.last or 0.0, *point, seconds=0.0, centered={}) for point in meter.core]
    return replace(
        log,
        steps=_columns_of(meter.losses, STEP_COLUMNS, "loss"),
        evaluations=_columns_of(meter.evaluations, EVALUATION_COLUMNS, "bits_per_byte"),
        rewards=_columns_of(meter.rewards, REWARD_COLUMNS, "reward"),
        core=log.core or core,
        averaged=True,
    )


def _columns_of(points: Sequence[tuple[int, float]], names: Sequence[str], known: str) -> Columns:
    """Return columns of which one is known."""
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    unknown = np.full(len(steps), np.nan)
    return Columns(steps, {**dict.fromkeys(names, unknown), known: values})


def _state(
    places: RunPlaces,
    log: RunLogRead,
    status: Status | None,
    trainer: TrainerState[RunConfig] | None,
    newest: Path | None,
    now: float,
) -> State | None:
    """Return the state of a run by its log and status; without these, by its newest checkpoint."""
    if not places.log or (status is None and log.last is None and trainer is not None):
        if trainer is not None:
            return unlogged_state(trainer.step, trainer.plan.num_iterations)
        return "unreadable" if newest and (newest / TRAINER).exists() else None
    host, ending = socket.gethostname(), log.endings[-1] if log.endings else None
    status = with_host_name(status, identity(), host) if status else None
    seen = status.time if status else log.last
    quiet = math.inf if seen is None else now - seen
    return run_state(ending.reason if ending else None, status, quiet, host, lives)


def interruptions(facts: RunFacts) -> Iterator[tuple[int, str]]:
    """Yield each resume of a run: its step, and what came before it in words."""
    for started, before in zip(facts.log.starts[1:], facts.log.endings, strict=False):
        how = "it was stopped" if before is not None else "its process ended without saving"
        began = "Started again from" if started.step == 0 else "Resumed at"
        yield started.step, f"{began} step {started.step:,}, after {how}"
