"""The events of a run, as values.

A run yields events. What shows or stores them folds them with a `Meter` or writes them with
`event_to_json`. Events need no arrays, terminals or clocks: each carries the time of day that it
happened at, which may jump, and the seconds that it took, which do not follow from such times.

The types of their numbers have bounds that no run reaches. An event that is made here is not
checked; one that comes from a file is, since what reads it counts on them.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from mlxchat.json_text import as_type, parse_json
from mlxchat.system import Pressure

MACHINE_FULL = 0.8  # share of memory in use beyond which a machine begins to swap
MOST_SECONDS = 1e11  # 3,000 years
MOST_MEASURED = 1e40  # the largest float32 is 3.4e38


def _between(least: float, most: float) -> AfterValidator:
    """Return a check of a float; NaN passes, which stands for what was not finite."""

    def check(number: float) -> float:
        if number < least or number > most:
            raise ValueError(f"{number:g} is not between {least:g} and {most:g}")
        return number

    return AfterValidator(check)


Count = Annotated[int, Field(ge=0, lt=2**63)]
Measured = Annotated[float, _between(-MOST_MEASURED, MOST_MEASURED)]
Seconds = Annotated[float, _between(-MOST_SECONDS, MOST_SECONDS)]
Time = Annotated[float, Field(allow_inf_nan=False), _between(0, MOST_SECONDS)]  # since the epoch


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

    active: Count
    peak: Count
    cache: Count
    machine_used: Count
    machine_total: Count
    mac_pressure: Pressure | None = None  # None on other machines

    @property
    def machine_full(self) -> bool:
        """Whether the machine may begin to swap."""
        return machine_full(self.machine_used, self.machine_total, self.mac_pressure)


@dataclass(frozen=True)
class Position:
    """The loader's place in the data; ``epoch`` counts from 1, ``shard`` from 0."""

    epoch: Count
    shard: Count
    shards: Count


@dataclass(frozen=True)
class Started:
    """A run starts, or resumes if ``step`` is not 0."""

    time: Time  # seconds since the epoch, as in every event
    tag: str
    step: Count  # completed optimizer steps
    total_steps: Count
    tokens_per_step: Count
    flops_per_token: Count
    peak_flops: Measured | None  # of the chip, in FLOP/s; None if unknown
    device: str
    parameters: Count
    estimated_memory: Count | None = None  # bytes, the planned peak of MLX
    matmul_flops: Measured | None = None  # of a product here, in FLOP/s; None if not measured
    ranks: Count = 1  # processes that train together; both FLOP/s are those of all
    python: str | None = None  # its version; None in logs of earlier versions, as ``system``
    system: str | None = None  # the operating system: its name and version, and the architecture

    @property
    def where(self) -> str:
        """The device, and how many ranks there are if they are several."""
        return f"{self.ranks} ranks, {self.device}" if self.ranks > 1 else self.device

    @property
    def software(self) -> str | None:
        """Python and the operating system, with their versions; None if the log does not say."""
        python = self.python and f"Python {self.python}"
        return ", ".join(filter(None, [python, self.system])) or None


@dataclass(frozen=True)
class Stepped:
    """An optimizer step is done."""

    time: Time
    step: Count
    loss: Measured  # mean over the step's tokens, nats
    learning_rate: Measured  # of the matrices
    gradient_norm: Measured  # before clipping
    seconds: Seconds  # since the end of the previous step, or of what came between
    position: Position
    memory: Memory
    waited: Seconds | None = None  # for the step's sums over the ranks; None of a single process


@dataclass(frozen=True)
class Evaluating:
    """The progress of an evaluation; shown, but not stored."""

    time: Time
    step: Count
    batch: Count  # batches evaluated so far
    batches: Count  # in the whole evaluation
    unit: str = "batches"  # or what is evaluated one by one


@dataclass(frozen=True)
class Evaluated:
    """The validation loss after ``step`` steps."""

    time: Time
    step: Count
    bits_per_byte: Measured
    loss: Measured  # mean over tokens, nats
    tokens: Count
    seconds: Seconds
    best: bool = False  # whether bits_per_byte is the lowest of the run so far


@dataclass(frozen=True)
class CoreMeasured:
    """CORE, nanochat's metric of base models, after ``step`` steps."""

    time: Time
    step: Count
    core: Measured  # 0 for guessing, 1 for all right
    error: Measured  # its standard error
    max_per_task: Count  # examples of each task, at most
    seconds: Seconds
    centered: dict[str, Measured]  # the scores that it is the mean of, by task


@dataclass(frozen=True)
class Drawing:
    """The progress of drawing and rewarding a step's answers; shown, but not stored."""

    time: Time
    step: Count
    answers: Count  # that have ended so far
    total: Count
    rewarded: Count = 0  # after all have ended

    @property
    def in_words(self) -> str:
        """The activity with its progress, such as "sampling answers 3/16"."""
        if self.rewarded:
            return f"rewarding answers {self.rewarded:,}/{self.total:,}"
        return f"sampling answers {self.answers:,}/{self.total:,}"


@dataclass(frozen=True)
class Rewarded:
    """The answers that a step learns from have been drawn and rewarded."""

    time: Time
    step: Count
    reward: Measured  # mean over the answers
    right: Measured  # share of the answers
    all_right: Measured  # share of the questions to which every answer was right
    all_wrong: Measured  # share of those to which none was
    length: Measured  # tokens of an answer, mean
    cut_off: Measured  # share of the answers that were as long as they may be
    entropy: Measured  # of the next token, nats, mean
    tokens: Count  # of all answers
    learned: Count  # tokens in the rows that are learned from, prompts included
    seconds: Seconds  # of drawing and rewarding
    all_equal: Measured = math.nan  # share of the questions to which all got the same reward


@dataclass(frozen=True)
class Judged:
    """The model's answers to held-out questions were judged after ``step`` steps.

    pass@k is the share of questions of which at least one of k answers is right; the low and high
    ends are those of a 95% interval.
    """

    time: Time
    step: Count
    questions: Count
    samples: Count  # answers to each question, the k of ``pass_k``
    reward: Measured  # mean over the answers
    pass_1: Measured
    pass_1_low: Measured
    pass_1_high: Measured
    pass_k: Measured
    pass_k_low: Measured
    pass_k_high: Measured
    length: Measured  # tokens of an answer, mean
    seconds: Seconds
    best: bool = False  # whether pass_1 is the highest of the run so far


@dataclass(frozen=True)
class Sampled:
    """The model's continuation of a prompt after ``step`` steps."""

    time: Time
    step: Count
    prompt: str
    text: str
    reward: Measured | None = None  # None if it is not judged


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete on disk."""

    time: Time
    step: Count
    path: str
    seconds: Seconds


@dataclass(frozen=True)
class Ended:
    """The run has ended, and its work is saved. ``reason``: ``finished`` or ``interrupted``."""

    time: Time
    step: Count
    reason: str


@dataclass(frozen=True)
class Replanned:
    """The total number of steps changed, to keep within a time budget."""

    time: Time
    step: Count  # the last completed one
    total_steps: Count
    before: Count  # the total until now
    budget: str  # as the user gave it


@dataclass(frozen=True)
class Noted:
    """A message to the user, such as that a shard is being waited for."""

    time: Time
    text: str


@dataclass(frozen=True)
class Progressed:
    """The progress of a task other than training; shown, but not stored."""

    time: Time
    task: str  # its name, which also identifies it
    done: Count  # in the unit, as is the total
    total: Count | None  # None if unknown
    unit: str  # what is counted, in the plural, such as "bytes", "tokens" or "conversations"


Event = (
    Started
    | Stepped
    | Evaluating
    | Evaluated
    | CoreMeasured
    | Drawing
    | Rewarded
    | Judged
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
    CoreMeasured: "core",
    Drawing: "drawing",
    Rewarded: "rewards",
    Judged: "judgement",
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


_MEASURED = (Measured, Seconds)
_KINDS = {name: kind for kind, name in EVENT_NAMES.items()}


@cache
def _validator(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def event_from_json(line: str | bytes) -> Event:
    """Return the event that `event_to_json` wrote; ``null`` for what was measured becomes NaN.

    Raises:
        ValidationError: it has a value that no run writes; this is a ValueError.
        ValueError: the line is not an event, or of a version with other events.
    """
    record = parse_json(line)
    kind = _KINDS.get(str(record.get("event"))) if isinstance(record, dict) else None
    if not isinstance(record, dict) or kind is None:
        raise ValueError("not an event")
    for entry in fields(kind):
        if entry.type in _MEASURED and record.get(entry.name, 0.0) is None:
            record[entry.name] = math.nan
    try:
        event: Event = as_type(record, _validator(kind))
    except ValidationError as error:
        if error.errors()[0]["type"] == "missing":
            raise ValueError("an event of another version") from error
        raise
    return event
