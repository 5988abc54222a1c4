"""The events of a run, as values.

A run yields events. What shows or stores them folds them with a `Meter` or writes them with
`event_to_json`. Events need no arrays, terminals or clocks: each carries the time of day that it
happened at, which may jump, and the seconds that it took, which do not follow from such times.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter

MACHINE_FULL = 0.8  # share of memory in use beyond which a machine begins to swap


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: MLX's allocator (in use, peak, kept for reuse) and the whole machine."""

    active: int
    peak: int
    cache: int
    machine_used: int
    machine_total: int


@dataclass(frozen=True)
class Position:
    """The loader's place in the data; ``epoch`` counts from 1, ``shard`` from 0."""

    epoch: int
    shard: int
    shards: int


@dataclass(frozen=True)
class Started:
    """A run starts, or resumes if ``step`` is not 0."""

    time: float  # seconds since the epoch, as in every event
    tag: str
    step: int  # completed optimizer steps
    total_steps: int
    tokens_per_step: int
    flops_per_token: int
    peak_flops: float | None  # of the chip, in FLOP/s; None if unknown
    device: str
    parameters: int
    estimated_memory: int | None = None  # bytes, the planned peak of MLX


@dataclass(frozen=True)
class Stepped:
    """An optimizer step is done."""

    time: float
    step: int
    loss: float  # mean over the step's tokens, nats
    learning_rate: float  # of the matrices
    gradient_norm: float  # before clipping
    seconds: float  # since the end of the previous step, or of what came between
    position: Position
    memory: Memory


@dataclass(frozen=True)
class Evaluating:
    """The progress of an evaluation; shown, but not stored."""

    time: float
    step: int
    batch: int  # batches evaluated so far
    batches: int  # in the whole evaluation


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
    """The model's continuation of a prompt after ``step`` steps."""

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
    """The run has ended, and its work is saved. ``reason``: ``finished`` or ``interrupted``."""

    time: float
    step: int
    reason: str


@dataclass(frozen=True)
class Replanned:
    """The total number of steps changed, to keep within a time budget."""

    time: float
    step: int  # the last completed one
    total_steps: int
    before: int  # the total until now
    budget: str  # as the user gave it


@dataclass(frozen=True)
class Noted:
    """A message to the user, such as that a shard is being waited for."""

    time: float
    text: str


@dataclass(frozen=True)
class Progressed:
    """The progress of a task other than training; shown, but not stored."""

    time: float
    task: str  # its name, which also identifies it
    done: int  # in the unit, as is the total
    total: int | None  # None if unknown
    unit: str  # what is counted, in the plural, such as "bytes", "tokens" or "conversations"


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
Report = Callable[[Event], None]  # receives events, from other threads too


EVENT_NAMES: dict[type, str] = {
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


def json_line(value: object) -> str:
    """Return a value as JSON on one line, in ASCII without control characters.

    NaN and infinity become ``null``, and paths become text.
    """
    written = json.dumps(_without_nan(value), allow_nan=False, default=os.fspath)
    return written.replace("\x7f", "\\u007f")  # the one that json leaves as it is


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def event_to_json(event: Event) -> str:
    """Return a line, ``{"event": "step", "time": ..., ...}``, as `json_line` writes it."""
    return json_line({"event": EVENT_NAMES[type(event)], **asdict(event)})


@cache
def _validator(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def event_from_json(line: str | bytes) -> Event:
    """Return the event that `event_to_json` wrote; a ``null`` in place of a number becomes NaN.

    Raises:
        ValueError: the line is not an event, or of a version with other events.
    """
    record = json.loads(line)
    kinds = {name: kind for kind, name in EVENT_NAMES.items()}
    kind = kinds.get(str(record.get("event"))) if isinstance(record, dict) else None
    if kind is None:
        raise ValueError(f"not an event: {line!r}")
    for entry in fields(kind):
        if entry.type is float and record.get(entry.name, 0.0) is None:
            record[entry.name] = math.nan
    event: Event = _validator(kind).validate_python(record)
    return event
