"""Homes with runs whose files are small: checkpoints, logs and statuses as a run leaves them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import store
from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.stages import STAGE_SETTINGS
from mlxchat.home import Home
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan, plan
from mlxchat.telemetry.events import (
    Ended,
    Evaluated,
    Event,
    Memory,
    Position,
    Sampled,
    Saved,
    Started,
    Stepped,
    event_to_json,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import Process, Status, status_path

BEGAN = 1_790_000_000.0
STEP_SECONDS = 2.0
SETTINGS: dict[str, Any] = {
    "depth": 2,
    "dataset": "builtin",
    "max_seq_len": 64,
    "total_batch_size": 1024,
    "num_iterations": 40,
    "save_every": 10,
}
RESOURCES = Resources(2**32, value_bytes=4, scores_held="none", chunk_rows=128)
MEMORY = Memory(10**6, 2 * 10**6, 10**5, 10**9, 4 * 10**9)
PLAN = plan(PretrainConfig.model_validate(SETTINGS), 512, RESOURCES)


@dataclass(frozen=True)
class MadeRun:
    """A run to write into a home.

    ``steps`` of ``PLAN`` are done, and those in ``saved`` are saved. ``bits`` is added to its bits
    per byte. ``resumed`` are the steps at which it was resumed.
    """

    tag: str
    stage: str = "pretraining"
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    saved: tuple[int, ...] = (30, 40)
    bits: float = 0.0
    began: float = BEGAN
    resumed: tuple[int, ...] = ()
    ended: str | None = "finished"
    log: bool = True

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        kind = STAGE_SETTINGS[self.stage]
        common = SETTINGS if kind is PretrainConfig else {"source": "fox"}
        return kind.model_validate({**common, "model_tag": self.tag, **self.settings})

    @property
    def plan(self) -> Plan:
        """Its plan, with the number of steps that its settings say."""
        steps = getattr(self.config, "num_iterations", None) or PLAN.num_iterations
        return PLAN.model_copy(update={"num_iterations": steps})

    def bits_after(self, step: int) -> float:
        """Bits per byte after a step."""
        return 1.0 + self.bits + 1 / (1 + step)

    def events(self) -> list[Event]:
        """Return what its log has."""
        time, events = self.began, list[Event]()
        for step in range(self.steps + 1):
            time = self.began + STEP_SECONDS * step
            if step:
                events.append(_stepped(time, step))
            if step % 10 == 0:
                bits = self.bits_after(step)
                events.append(Evaluated(time, step, bits, 2 * bits, 640, 0.5))
            if step and step % 20 == 0:
                events.append(Sampled(time, step, "The fox\n", f" saw {step} hens."))
            if step in self.saved:
                events.append(Saved(time, step, f"step_{step:06d}", 0.1))
            if step == 0 or step in self.resumed:
                events.append(self._started(time, step))
        if self.ended in ("finished", "interrupted"):
            events.append(Ended(time, self.steps, self.ended))
        return events

    def _started(self, time: float, step: int) -> Started:
        plan = self.plan
        return Started(
            time,
            self.tag,
            step,
            plan.num_iterations,
            plan.tokens_per_step,
            plan.flops_per_token,
            None,
            "a chip",
            plan.parameters,
            python="3.12.3",
            system="macOS 26.1, arm64",
        )

    def put(self, home: Home) -> Path:
        """Write it, and return the folder of its steps."""
        run = home.stage(self.stage) / self.tag
        for step in self.saved:
            self._save(run, step)
        if self.log:
            log = home.log(self.tag)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(f"{event_to_json(event)}\n" for event in self.events()))
            status_path(log).write_text(json.dumps(asdict(self.status())))
        return run

    def status(self) -> Status:
        """Return its last status; that of a run which has not ended is of a dead process."""
        at = self.began + STEP_SECONDS * self.steps
        process = Process(2**30, self.began, "here")
        ended = self.ended if self.ended in ("finished", "interrupted", "failed") else None
        failure = "The disk is full." if ended == "failed" else None
        return Status(at, process, "training", self.steps, 40, MEMORY, ended, failure)  # type: ignore[arg-type]

    def _save(self, run: Path, step: int) -> None:
        meter = Meter()
        for event in self.events():
            if getattr(event, "step", 0) <= step:
                meter.update(event)
        meter.step = step
        state: TrainerState[RunConfig] = TrainerState(
            step=step,
            stage=self.stage,
            settings=self.config,
            plan=self.plan,
            meter=meter.state(),
            data=[],
            revision=None,
        )

        def write(folder: Path) -> None:
            shape = {"num_hidden_layers": 2, "hidden_size": 128}
            (folder / "config.json").write_text(json.dumps(shape))
            (folder / "model.safetensors").write_bytes(f"{self.tag} {step} ".encode() + bytes(1000))
            (folder / "trainer.json").write_text(state.model_dump_json())

        store.save(run, step, write, clock=lambda: self.began + STEP_SECONDS * step)  # type: ignore[arg-type]


def _stepped(time: float, step: int) -> Stepped:
    return Stepped(time, step, 3.0, 0.02, 0.5, STEP_SECONDS, Position(1, 0, 1), MEMORY)


def put_evaluation(home: Home, tag: str, step: int) -> list[Path]:
    """Write the files of an evaluation of a step on CORE."""
    home.base_evaluations.mkdir(parents=True, exist_ok=True)
    stem = f"{tag}_{step:06d}_500_per_task_0a1b2c3d"
    paths = [home.base_evaluations / f"{stem}{end}" for end in (".jsonl", "_3_tasks.csv")]
    for path in paths:
        path.write_text("x")
    return paths


def put_adapter(home: Home, tag: str, base: Path) -> Path:
    """Write a run whose model is an adapter on the model in a step's directory."""
    from mlxchat.checkpoint.bases import BaseRecord, checksums_of_weights

    weights = checksums_of_weights(base)

    def write(folder: Path) -> None:
        step = store.step_of(base)
        record = BaseRecord(run=base.parent.name, step=step, folder=str(base), weights=weights)
        record.write(folder)
        (folder / "config.json").write_text("{}")

    return store.save(home.finetuned / tag, 5, write).parent
