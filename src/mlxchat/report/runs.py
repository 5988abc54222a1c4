"""A typed summary of each run in a home, quick enough for hundreds of them.

A run is read from the trainer.json of its newest checkpoint, and from the end of its log for what
has happened since. Its state is the one that `mlxchat monitor` shows.
"""

import math
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, TypeAdapter

from mlxchat.checkpoint import store
from mlxchat.checkpoint.bases import BASE_FILE
from mlxchat.checkpoint.files import (
    CONFIG,
    ORIGIN,
    QUANTIZATION,
    TRAINER,
    read_json,
    read_json_as,
    unreadable,
)
from mlxchat.checkpoint.stamp import saved_at
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.disk import disk_use
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.monitor.machine import lives
from mlxchat.monitor.runs import State, last_sign, read_of_run, run_state, with_host_name
from mlxchat.report.log_end import LogEnd, read_log_end
from mlxchat.report.places import RunPlaces, all_runs
from mlxchat.system import identity
from mlxchat.telemetry.events import Count, Seconds
from mlxchat.telemetry.meter import CorePoint
from mlxchat.telemetry.status import Process, Status, read_status, status_path


class _Shape(BaseModel):
    n_layer: Count
    n_embd: Count
    arch: str = "classic"


class _Plan(BaseModel):
    num_iterations: Count
    tokens_per_step: Count
    parameters: Count
    flops_per_token: Count
    model: _Shape


class _Meter(BaseModel):
    step: Count
    elapsed: Seconds
    peak_memory: Count
    evaluations: tuple[tuple[Count, FiniteFloat], ...] = ()
    scores: tuple[tuple[Count, FiniteFloat], ...] = ()
    core: tuple[CorePoint, ...] = ()


class _Settings(BaseModel):
    dataset: str | None = None
    data_dir: str | None = None
    source: str | None = None
    init_from: str | None = None


class _Trainer(BaseModel):
    """The part of the trainer's state that a summary needs (`mlxchat.checkpoint.trainer`)."""

    stage: str
    plan: _Plan
    meter: _Meter
    settings: _Settings


_TRAINER: TypeAdapter[_Trainer] = TypeAdapter(_Trainer)


@dataclass(frozen=True)
class ModelFacts:
    """The kind and size of a run's model. Unknown numbers are None.

    Attributes:
        layers, width, parameters: its size; the parameters are those of a whole model.
        arch: its architecture.
        bits: of most weights, if it is quantized.
        base: the run of the model that it is an adapter on.
        imported: the program that it was imported from.
    """

    layers: int | None = None
    width: int | None = None
    parameters: int | None = None
    arch: str | None = None
    bits: int | None = None
    base: str | None = None
    imported: str | None = None


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance. Unknown facts are None.

    Attributes:
        places: where it is on disk.
        stage: the stage of its training, as `mlxchat.home.STAGE_FOLDERS` names it.
        state: as in `mlxchat.monitor.runs`; None for a model that was not trained as this run:
            imported, quantized or fused.
        fault: why it cannot be read, if the state is ``unreadable``.
        step, total_steps: completed steps, and those of the whole run.
        evaluations: step and bits per byte, ascending.
        scores: step and pass@1 on held-out questions, ascending; of reinforcement learning.
        tokens: that it has trained on; None of reinforcement learning.
        flops: that this took.
        seconds: of training, without pauses.
        bytes: on disk; files that copies share count in each of them.
        began: when its process started; seconds since the epoch, as ``when``.
        when: the last sign of life, or when its newest step was saved.
        saved_steps: ascending.
        failure: the error message, if it failed.
        began_with: the run or directory of the model that its training began with; None for random
            weights.
        dataset, data_dir: what its settings say of the text that it is pretrained on.
    """

    places: RunPlaces
    stage: str | None
    state: State | None
    fault: str | None = None
    model: ModelFacts = field(default_factory=ModelFacts)
    step: int | None = None
    total_steps: int | None = None
    evaluations: tuple[tuple[int, float], ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    core: tuple[CorePoint, ...] = ()
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    bytes: int = 0
    began: float | None = None
    when: float | None = None
    saved_steps: tuple[int, ...] = ()
    failure: str | None = None
    began_with: str | None = None
    dataset: str | None = None
    data_dir: str | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.places.name

    @property
    def command(self) -> str | None:
        """The command that its stage is trained with; None for a model that is no run."""
        return COMMAND_OF_STAGE.get(self.stage or "") if self.state else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte in the last evaluation."""
        return self.evaluations[-1][1] if self.evaluations else None

    @property
    def best(self) -> tuple[int, float] | None:
        """The evaluation with the lowest bits per byte: step and bits."""
        return min(self.evaluations, key=lambda point: point[1], default=None)

    @property
    def pass_1(self) -> float | None:
        """The share of held-out questions answered right in the last evaluation."""
        return self.scores[-1][1] if self.scores else None


class Summaries:
    """Reads summaries of runs.

    Args:
        home: where they are.
        now: seconds since the epoch.
        host: the name of this machine.
        machine: its identity.
        lives: returns whether a process of this machine is still running.
    """

    def __init__(
        self,
        home: Home,
        now: float | None = None,
        host: str | None = None,
        machine: str | None = None,
        lives: Callable[[Process], bool] = lives,
    ) -> None:
        self._home, self._lives = home, lives
        self._now = time.time() if now is None else now
        self._host, self._machine = host or socket.gethostname(), machine or identity()

    def all(self) -> list[RunSummary]:
        """Return the summaries of all runs, the ones last seen last.

        Raises:
            MlxchatError: a folder of runs cannot be read. A run that cannot be is ``unreadable``.
        """
        found = [self.read(places) for places in all_runs(self._home)]
        return sorted(found, key=lambda run: (run.when or 0.0, run.name))

    def read(self, places: RunPlaces) -> RunSummary:
        """Return the summary of a run."""
        try:
            steps = store.steps(places.folder) if places.folder else []
        except OSError as error:
            problem = unreadable(places.folder or self._home.root, error).problem
            return RunSummary(places, places.stage, "unreadable", problem)
        newest = store.directory(places.folder, steps[-1]) if places.folder and steps else None
        trainer, fault = _read_trainer(newest)
        log = self._home.log(places.name)
        saved = trainer.meter.step if trainer else None
        end, status, quiet = LogEnd(), None, 0.0
        when = _when_saved(newest)
        if places.log and not fault:
            try:
                found = read_of_run(status_path(log), read_status)
                status = with_host_name(found, self._machine, self._host)
                end = read_of_run(log, lambda path: read_log_end(path, saved))
                seen = last_sign(log, end.time, status, self._now)
            except MlxchatError as error:
                fault = error.problem
            else:
                when = max(filter(None, (seen, when)), default=None)
                quiet = math.inf if seen is None else self._now - seen
        state = self._state(places, trainer, end, status, quiet, fault)
        began = status.process.started if status else None
        facts = _facts(trainer, end)
        return RunSummary(
            places,
            trainer.stage if trainer else places.stage,
            state,
            fault,
            _model(newest, trainer),
            bytes=disk_use(places.paths).bytes,
            began=began,
            when=when,
            saved_steps=tuple(steps),
            failure=status.failure if status else None,
            **facts,
        )

    def _state(
        self,
        places: RunPlaces,
        trainer: _Trainer | None,
        end: LogEnd,
        status: Status | None,
        quiet: float,
        fault: str | None,
    ) -> State | None:
        if fault:
            return "unreadable"
        if places.log and (status or end.time is not None or trainer is None):
            return run_state(end.ending, status, quiet, self._host, self._lives)
        if trainer is None:
            return None
        return unlogged_state(trainer.meter.step, trainer.plan.num_iterations)


def unlogged_state(step: int, total_steps: int) -> State:
    """Return the state of a run without a log, as its newest checkpoint has it."""
    return "finished" if step >= total_steps else "interrupted"


def summaries(home: Home) -> list[RunSummary]:
    """Return the summaries of all runs in a home, the ones last seen last.

    Raises:
        MlxchatError: a folder of runs cannot be read.
    """
    return Summaries(home).all()


def beginning_with(name: str, runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return the runs whose training began with the model of a run, adapters on it included."""
    return [run for run in runs if name in (run.began_with, run.model.base) and run.name != name]


def reading_from(dataset: str, folder: Path, runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return the runs that are trained on a dataset, or may be.

    What a run is trained on is known once it has saved a step. One that is being trained and has
    saved none may be trained on any.

    Args:
        dataset: its name.
        folder: its folder.
        runs: the runs to choose from.
    """
    return [
        run
        for run in runs
        if (run.stage in ("pretraining", None) and run.state == "running" and not run.saved_steps)
        or (
            run.stage == "pretraining"
            and (run.dataset == dataset if run.data_dir is None else run.data_dir == str(folder))
        )
    ]


def _read_trainer(newest: Path | None) -> tuple[_Trainer | None, str | None]:
    """Return what the newest checkpoint says of the training, or why it cannot be read."""
    if newest is None or not (newest / TRAINER).exists():
        return None, None
    try:
        return read_json_as(newest / TRAINER, _TRAINER), None
    except MlxchatError as error:
        return None, error.problem


def _when_saved(newest: Path | None) -> float | None:
    if newest is None:
        return None
    with suppress(OSError):
        return saved_at(newest, store.step_of(newest))
    return None


def _facts(trainer: _Trainer | None, end: LogEnd) -> dict[str, Any]:
    """Return what is known of the progress, from the newest checkpoint and the log since."""
    if trainer is None:
        seconds = end.seconds if end.time is not None else None
        return {
            "step": end.step,
            "total_steps": end.total_steps,
            "evaluations": end.evaluations,
            "scores": end.scores,
            "seconds": seconds,
        }
    meter, plan, settings = trainer.meter, trainer.plan, trainer.settings
    step = max(meter.step, end.step or 0)
    tokens = None if meter.scores or trainer.stage.startswith("reinf") else step
    return {
        "step": step,
        "total_steps": end.total_steps or plan.num_iterations,
        "evaluations": (*meter.evaluations, *end.evaluations),
        "scores": (*meter.scores, *end.scores),
        "core": meter.core,
        "tokens": tokens and tokens * plan.tokens_per_step,
        "flops": tokens and float(tokens) * plan.tokens_per_step * plan.flops_per_token,
        "seconds": meter.elapsed + end.seconds,
        "peak_memory": meter.peak_memory,
        "began_with": settings.source or settings.init_from,
        "dataset": settings.dataset,
        "data_dir": settings.data_dir,
    }


def _model(newest: Path | None, trainer: _Trainer | None) -> ModelFacts:
    if newest is None:
        return ModelFacts()
    config = _fields(newest / CONFIG)
    base, origin = _fields(newest / BASE_FILE), _fields(newest / ORIGIN)
    plan = trainer.plan if trainer else None
    quantization = config.get(QUANTIZATION)
    return ModelFacts(
        layers=plan.model.n_layer if plan else _integer(config.get("num_hidden_layers")),
        width=plan.model.n_embd if plan else _integer(config.get("hidden_size")),
        parameters=plan.parameters if plan else None,
        arch=plan.model.arch if plan else None,
        bits=_integer(quantization.get("bits")) if isinstance(quantization, dict) else None,
        base=_text(base.get("run")),
        imported=_text(origin.get("program")),
    )


def _fields(path: Path) -> dict[str, Any]:
    with suppress(MlxchatError):
        return read_json(path) if path.exists() else {}
    return {}


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
