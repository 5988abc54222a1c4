"""What happens in a run, as values.

A run yields events; those who show or store them fold them with a `Meter` or write
them with `to_json`. Nothing here knows of arrays, terminals or clocks: every event carries its own
time.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
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
class Replanned:
    """The run takes another number of steps than was told, to hold a time budget."""

    time: float
    step: int  # the last one done
    total_steps: int
    before: int  # total steps until now
    budget: str  # as it was said


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


Event = (
    Started
    | Stepped
    | Evaluating
    | Evaluated
    | Sampled
    | Saved
    | Replanned
    | Ended
    | Noted
    | Progressed
)
Report = Callable[[Event], None]  # is told of progress, from other threads too
Clock = Callable[[], float]  # seconds since the epoch


NAMES: dict[type, str] = {
    Started: "started",
    Stepped: "step",
    Evaluating: "evaluating",
    Evaluated: "evaluation",
    Sampled: "sample",
    Saved: "saved",
    Ended: "ended",
    Replanned: "replan",
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
