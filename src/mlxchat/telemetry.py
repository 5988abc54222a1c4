"""What happens in a run, as values, and what is computed from them.

A run yields events; those who show or store them fold them with a `Meter` or write them with
`to_json`. Nothing here knows of arrays, terminals or clocks: every event carries its own time.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

MACHINE_FULL = 0.8  # of its memory: beyond, a machine begins to swap


@dataclass(frozen=True)
class Memory:
    """Bytes: MLX's allocator (in use, its peak, kept for reuse) and the whole machine."""

    active: int
    peak: int
    cache: int
    machine_used: int
    machine_total: int


@dataclass(frozen=True)
class Position:
    """Where the loader is in the data: ``epoch`` counts from 1, ``shard`` from 0."""

    epoch: int
    shard: int
    shards: int


@dataclass(frozen=True)
class Started:
    """A run begins, or goes on where ``step`` is not 0."""

    time: float  # seconds since the epoch, as in every event
    tag: str
    step: int  # completed optimizer steps
    total_steps: int
    tokens_per_step: int
    flops_per_token: int
    peak_flops: float | None  # of the chip, FLOP/s; None where unknown
    device: str
    parameters: int
    estimated_memory: int | None = None  # bytes, MLX's peak as it was planned


@dataclass(frozen=True)
class Stepped:
    """An optimizer step is done."""

    time: float
    step: int
    loss: float  # mean over the step's tokens, nats
    learning_rate: float  # of the matrices
    gradient_norm: float  # before clipping
    seconds: float  # wall-clock, from the end of the step before
    position: Position
    memory: Memory


@dataclass(frozen=True)
class Evaluating:
    """Evaluation has come this far; shown, not stored."""

    time: float
    step: int
    batch: int
    batches: int


@dataclass(frozen=True)
class Evaluated:
    """The validation loss after ``step`` steps."""

    time: float
    step: int
    bits_per_byte: float
    loss: float  # mean over tokens, nats
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Sampled:
    """What the model makes of a prompt after ``step`` steps."""

    time: float
    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete on disk."""

    time: float
    step: int
    path: str
    seconds: float


@dataclass(frozen=True)
class Ended:
    """The run is over: ``reason`` is ``finished`` or ``interrupted``; its work is saved."""

    time: float
    step: int
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something worth a line: a tokenizer is trained first, a shard waited for."""

    time: float
    text: str


@dataclass(frozen=True)
class Progressed:
    """A task other than training has come this far; shown, not stored."""

    time: float
    task: str  # what is shown beside the bar, and what tells bars apart
    done: int
    total: int | None
    unit: str  # "bytes", "characters" or "documents"


Event = Started | Stepped | Evaluating | Evaluated | Sampled | Saved | Ended | Noted | Progressed


NAMES: dict[type, str] = {
    Started: "started",
    Stepped: "step",
    Evaluating: "evaluating",
    Evaluated: "evaluation",
    Sampled: "sample",
    Saved: "saved",
    Ended: "ended",
    Noted: "note",
    Progressed: "progress",
}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(event: Event) -> str:
    """One line: ``{"event": "step", "time": ..., ...}``; NaN and infinity become ``null``."""
    values = _without_nan(asdict(event))
    return json.dumps({"event": NAMES[type(event)], **values}, allow_nan=False)


@cache
def _validator(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def from_json(line: str | bytes) -> Event:
    """The event that `to_json` wrote; a ``null`` in the place of a number is NaN.

    Raises:
        ValueError: it is none, or one of a version whose events were others.
    """
    record = json.loads(line)
    kinds = {name: kind for kind, name in NAMES.items()}
    kind = kinds.get(str(record.get("event"))) if isinstance(record, dict) else None
    if kind is None:
        raise ValueError(f"no event: {line!r}")
    for entry in fields(kind):
        if entry.type is float and record.get(entry.name, 0.0) is None:
            record[entry.name] = math.nan
    event: Event = _validator(kind).validate_python(record)
    return event


class JsonLines:
    """The log of a run: one JSON object a line, handed to the system as each event comes.

    So a killed process loses no line, though it may leave the last one broken; `resume` mends it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    @classmethod
    def resume(cls, path: Path, step: int) -> "JsonLines":
        """Go on after ``step``: what the log has of later steps goes, at step 0 all of it.

        The file is replaced whole, never seen half written. Raises OSError as writing does.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = path.with_name(f"{path.name}.partial")
        with rewritten.open("wb") as file:
            if step > 0 and path.exists():
                file.writelines(_lines_until(path, step))
            file.flush()
            os.fsync(file.fileno())
        rewritten.replace(path)
        return cls(path)

    def write(self, event: Event) -> None:
        """Append an event; `Evaluating` and `Progressed` are for the eye only and left out."""
        if not isinstance(event, (Evaluating, Progressed)):
            self._file.write(f"{to_json(event)}\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; writing is an error from here on."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:  # cut off by a kill
                continue
            if record.get("step", 0) > step:
                return  # notes carry no step, but whatever comes later in the file came later
            yield line.rstrip(b"\n") + b"\n"


SMOOTHING = 0.9  # of the exponential average of the loss, as in nanochat
RECENT_STEPS = 20
LEAST_RECENT_STEPS = 3  # two can land together, and then the second one's seconds are a remainder
MOST_POINTS = 1000
_SERIES = ("losses", "evaluations")


@dataclass
class Meter:
    """Folds events into what one wants to know of a run.

    The fields that can be given survive in a checkpoint (`state`, `restore`); the rates begin
    anew with each `Started`. One thread may read while another calls `update`.
    """

    step: int = 0
    elapsed: float = 0.0  # seconds of training, those before a resume included
    peak_memory: int = 0  # bytes, of MLX
    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, smoothed), thinned
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, bits per byte)
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    stride: int = 1  # `losses` holds the steps that it divides
    started: Started | None = field(default=None, init=False)
    _recent: list[float] | None = field(default=None, init=False)  # None until a step is done

    def update(self, event: Event) -> None:
        """Take an event in; those that change nothing here are welcome too."""
        match event:
            case Started():
                self.started = event
                self.step = event.step
                self._recent = None
            case Stepped():
                self._step(event)
            case Evaluated() if math.isfinite(event.bits_per_byte):
                self.evaluations.append((event.step, event.bits_per_byte))

    def _step(self, event: Stepped) -> None:
        self.step = event.step
        self.elapsed += event.seconds
        self.peak_memory = max(self.peak_memory, event.memory.peak)
        if self._recent is None:
            self._recent = []  # the first step compiles: its time says nothing of the next ones
        else:
            self._recent = [*self._recent, event.seconds][-RECENT_STEPS:]
        if math.isfinite(event.loss):
            self.loss_sum = SMOOTHING * self.loss_sum + (1 - SMOOTHING) * event.loss
            self.loss_weight = SMOOTHING * self.loss_weight + (1 - SMOOTHING)
            self._remember(event.step, self.loss_sum / self.loss_weight)

    def _remember(self, step: int, loss: float) -> None:
        if step % self.stride == 0:
            self.losses.append((step, loss))
        if len(self.losses) >= MOST_POINTS:
            self.stride *= 2
            self.losses = [point for point in self.losses if point[0] % self.stride == 0]

    @property
    def total_steps(self) -> int:
        """Of the whole run; 0 before it starts."""
        return self.started.total_steps if self.started else 0

    @property
    def tokens(self) -> int:
        """Trained on so far."""
        return self.step * self.started.tokens_per_step if self.started else 0

    @property
    def loss(self) -> float | None:
        """Exponential average of the finite step losses, without its bias to zero, in nats."""
        return self.loss_sum / self.loss_weight if self.loss_weight else None

    @property
    def bits_per_byte(self) -> float | None:
        """Of the last evaluation."""
        return self.evaluations[-1][1] if self.evaluations else None

    @property
    def best_bits_per_byte(self) -> float | None:
        """Of all evaluations, the lowest."""
        return min((bits for _, bits in self.evaluations), default=None)

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of the recent steps; None while these are fewer than `LEAST_RECENT_STEPS`."""
        recent = self._recent or ()
        return sum(recent) / len(recent) if len(recent) >= LEAST_RECENT_STEPS else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the recent steps."""
        seconds = self.seconds_per_step
        return self.started.tokens_per_step / seconds if self.started and seconds else None

    @property
    def flops_per_second(self) -> float | None:
        """Of the recent steps, as the model's arithmetic counts them."""
        rate = self.tokens_per_second
        return self.started.flops_per_token * rate if self.started and rate else None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, 0 to 1; None where the chip's peak is unknown."""
        rate, peak = self.flops_per_second, self.started.peak_flops if self.started else None
        return rate / peak if rate and peak else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the recent rate."""
        seconds = self.seconds_per_step
        return (self.total_steps - self.step) * seconds if seconds is not None else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON values."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        return {**state, **{name: [list(p) for p in state[name]] for name in _SERIES}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier meter's `state`; the run's `Started` must follow."""
        for name, value in state.items():
            setattr(self, name, [(s, y) for s, y in value] if name in _SERIES else value)
