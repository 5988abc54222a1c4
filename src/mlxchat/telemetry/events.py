"""The events of a run, as values.

A run yields events. What shows or stores them folds them with a `Meter` or writes them with
`event_to_json`. Events need no arrays, terminals or clocks: each carries its own time.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from mlxchat.system import Pressure

MACHINE_FULL = 0.8  # share of memory in use beyond which a machine begins to swap


def machine_full(used: int, total: int, mac_pressure: Pressure | None) -> bool:
    """Return whether so little memory is left that a machine may begin to swap.

    Args:
        used, total: bytes of the machine's memory.
        mac_pressure: a Mac's own word, which decides: at rest it may well use more than 80%. None
            for other machines.
    """
    return used > MACHINE_FULL * total if mac_pressure is None else mac_pressure != "normal"


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: MLX's allocator (in use, peak, kept for reuse) and the whole machine."""

    active: int
    peak: int
    cache: int
    machine_used: int
    machine_total: int
    mac_pressure: Pressure | None = None  # None on other machines

    @property
    def machine_full(self) -> bool:
        """Whether the machine may begin to swap."""
        return machine_full(self.machine_used, self.machine_total, self.mac_pressure)


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
    matmul_flops: float | None = None  # of a matrix product here, in FLOP/s; None if not measured


@dataclass(frozen=True)
class Stepped:
    """An optimizer step is done."""

    time: float
    step: int
    loss: float  # mean over the step's tokens, nats
    learning_rate: float  # of the matrices
    gradient_norm: float  # before clipping
    seconds: float  # wall-clock time since the end of the previous step
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
Clock = Callable[[], float]  # seconds since the epoch


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


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def event_to_json(event: Event) -> str:
    """Return a line, ``{"event": "step", "time": ..., ...}``; NaN and infinity become ``null``."""
    values = _without_nan(asdict(event))
    return json.dumps({"event": EVENT_NAMES[type(event)], **values}, allow_nan=False)


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
