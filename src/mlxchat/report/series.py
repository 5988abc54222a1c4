"""The log of a run, read at once into columns: steps, evaluations, rewards, samples, resumes.

A run of 250,000 steps leaves 100 MB of lines, nearly all of them alike. A line in the form that
`event_to_json` writes is read by a regular expression, which is made from the event's fields; all
others are checked one by one by `event_from_json`, and what is no event is counted and skipped.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, NamedTuple, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt

from mlxchat.disk import open_regular
from mlxchat.telemetry.events import (
    EVENT_NAMES,
    MOST_MEASURED,
    CoreMeasured,
    Count,
    Ended,
    Evaluated,
    Event,
    Judged,
    Noted,
    Replanned,
    Rewarded,
    Sampled,
    Started,
    Stepped,
    Time,
    event_from_json,
)
from mlxchat.telemetry.log import MOST_LINE
from mlxchat.telemetry.meter import RATE_STEPS, SMOOTHING

Values = npt.NDArray[np.float64]

REPORTED = 20_000  # lines, which take a tenth of a second
FIRST_SHARE = 5  # of a value in the average is this divided by the number of values so far
MOST_NOTES = 200  # of a log that are kept; a run writes some ten


STEP_COLUMNS = ("loss", "learning_rate", "gradient_norm", "seconds", "peak")
EVALUATION_COLUMNS = ("bits_per_byte", "loss")
REWARD_COLUMNS = ("reward", "length", "cut_off", "entropy")
_KEPT: dict[type, tuple[str, ...]] = {  # of the events that are many: fields, in their order there
    Stepped: STEP_COLUMNS,
    Evaluated: EVALUATION_COLUMNS,
    Rewarded: REWARD_COLUMNS,
}
_ALWAYS = ("time", "step")  # stand before the columns in a row
_Row = tuple[bytes, ...]  # numbers as they are written


@dataclass(frozen=True)
class Columns:
    """Measurements in the order of their steps; NaN stands for what was not finite.

    Attributes:
        step: the steps, ascending.
        by_name: a column of as many values for each name.
    """

    step: Values
    by_name: dict[str, Values]

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, name: str) -> Values:
        return self.by_name[name]


@dataclass(frozen=True)
class RunLogRead:
    """The contents of a run's log.

    Attributes:
        starts: a `Started` for each process that trained it; those after the first resumed.
        endings: what came last before each of them, and at the end: `Ended` if the process said
            that it ended, None if it was killed or still runs.
        steps: ``loss``, ``learning_rate``, ``gradient_norm``, ``seconds``, ``peak``.
        evaluations: ``bits_per_byte`` and ``loss``.
        rewards: the means of what was drawn, in reinforcement learning.
        samples: all samples, in order.
        notes: the first `MOST_NOTES` notes.
        averaged: whether losses and rewards are exponential averages already.
        lines, damaged: how many lines there are, and how many of them are no events.
        first, last: the times of the first and the last event; None if there is none.
    """

    starts: list[Started] = field(default_factory=list)
    endings: list[Ended | None] = field(default_factory=list)
    steps: Columns = field(default_factory=lambda: _columns(STEP_COLUMNS, ()))
    evaluations: Columns = field(default_factory=lambda: _columns(EVALUATION_COLUMNS, ()))
    rewards: Columns = field(default_factory=lambda: _columns(REWARD_COLUMNS, ()))
    judged: list[Judged] = field(default_factory=list)
    core: list[CoreMeasured] = field(default_factory=list)
    samples: list[Sampled] = field(default_factory=list)
    replans: list[Replanned] = field(default_factory=list)
    notes: list[Noted] = field(default_factory=list)
    averaged: bool = False
    lines: int = 0
    damaged: int = 0
    first: float | None = None
    last: float | None = None

    @property
    def started(self) -> Started | None:
        """The start, or the last resume; None of a log without any."""
        return self.starts[-1] if self.starts else None

    @property
    def total_steps(self) -> int:
        """The steps of the whole run, as last planned."""
        started = self.started
        if started is None:
            return 0
        later = [replan for replan in self.replans if replan.time >= started.time]
        return later[-1].total_steps if later else started.total_steps

    def seconds_at(self, step: Values) -> Values:
        """Return the seconds of training until after each of the steps."""
        if not len(self.steps):
            return np.zeros(len(step))
        reached = np.searchsorted(self.steps.step, step, side="right")
        seconds: Values = np.concatenate([[0.0], elapsed(self.steps)])[reached]
        return seconds


def read_run_log(path: Path, report: Callable[[int], None] = lambda _: None) -> RunLogRead:
    """Read the whole log of a run.

    A last line without its end, which is still being written or was cut off by a kill, is left out.

    Args:
        path: the log.
        report: called with the bytes read so far, each time that there are `REPORTED` more lines.

    Raises:
        OSError: it cannot be read; it may be missing.
    """
    rows: dict[type, list[_Row]] = {kind: [] for kind in _KEPT}
    found, lines, damaged = _Folded(), 0, 0
    with open_regular(path) as file:
        for line in iter(partial(file.readline, MOST_LINE), b""):
            reader = _READERS.get(line[: line.find(b",")])
            if reader and (match := reader.pattern.fullmatch(line)):
                rows[reader.kind].append(match.groups())
                lines += 1
                if lines % REPORTED == 0:
                    report(file.tell())
                continue
            if not line.endswith(b"\n"):
                if len(line) < MOST_LINE:
                    break
                _skip_the_rest(file)
            lines += 1
            try:
                event = event_from_json(line)
            except ValueError:
                damaged += 1
                continue
            if type(event) in rows:
                rows[type(event)].append(_row(event))
            else:
                found.take(event)
    for kind in rows.values():
        found.times += [float(row[0]) for row in (*kind[:1], *kind[-1:])]
    return RunLogRead(
        starts=found.starts,
        endings=found.finished(),
        steps=_columns(STEP_COLUMNS, rows[Stepped]),
        evaluations=_columns(EVALUATION_COLUMNS, rows[Evaluated]),
        rewards=_columns(REWARD_COLUMNS, rows[Rewarded]),
        judged=found.judged,
        core=found.core,
        samples=found.samples,
        replans=found.replans,
        notes=found.notes,
        lines=lines,
        damaged=damaged,
        first=min(found.times, default=None),
        last=max(found.times, default=None),
    )


def _skip_the_rest(file: BinaryIO) -> None:
    """Skip the rest of a line that is longer than any event's."""
    while (rest := file.readline(MOST_LINE)) and not rest.endswith(b"\n"):
        pass


class _Folded:
    """Everything of a log but its columns, folded line by line."""

    def __init__(self) -> None:
        self.starts: list[Started] = []
        self.judged: list[Judged] = []
        self.core: list[CoreMeasured] = []
        self.samples: list[Sampled] = []
        self.replans: list[Replanned] = []
        self.notes: list[Noted] = []
        self.times: list[float] = []
        self._endings: list[Ended | None] = []
        self._ended: Ended | None = None

    def take(self, event: Event) -> None:
        """Fold in an event."""
        self.times.append(event.time)
        match event:
            case Started():
                if self.starts:
                    self._endings.append(self._ended)
                self.starts.append(event)
                self._ended = None
            case Ended():
                self._ended = event
            case Judged():
                self.judged.append(event)
            case CoreMeasured():
                self.core.append(event)
            case Sampled():
                self.samples.append(event)
            case Replanned():
                self.replans.append(event)
            case Noted() if len(self.notes) < MOST_NOTES:
                self.notes.append(event)

    def finished(self) -> list[Ended | None]:
        """Return how each process ended."""
        return [*self._endings, self._ended] if self.starts else []


# ==== Lines in the form that mlxchat writes ======================================================

_NUMBER = rb"-?\d{1,18}(?:\.\d+)?(?:e[+-]\d\d\d?)?"
_COUNT = rb"\d{1,18}"
_WORD = rb"true|false|null|\"[a-z]*\""


class _Reader(NamedTuple):
    """A pattern of the lines of one kind of event; its groups are the values of a row."""

    kind: type
    pattern: re.Pattern[bytes]


def _reader(kind: type) -> _Reader:
    kept = (*_ALWAYS, *_KEPT[kind])
    parts = _pattern(kind, kept)
    return _Reader(kind, re.compile(rb'\{"event": "%s", %s\}\n' % (_name(kind), parts)))


def _name(kind: type) -> bytes:
    return EVENT_NAMES[kind].encode()


def _pattern(kind: type, kept: Sequence[str]) -> bytes:
    """Return a regular expression for the fields of an event, with a group for those to keep."""
    parts = []
    for entry in fields(kind):
        inner = entry.type
        if isinstance(inner, type) and is_dataclass(inner):
            value = rb"\{" + _pattern(inner, kept) + rb"\}"
        else:
            value = (b"(%s)" if entry.name in kept else b"(?:%s)") % _value_pattern(inner)
        parts.append(b'"%s": %s' % (entry.name.encode(), value))
    return b", ".join(parts)


def _value_pattern(kind: Any) -> bytes:
    """Return a regular expression for the values of a field's type."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if kind == Count:
        return _COUNT
    if kind == Time:
        return _NUMBER
    return _NUMBER + b"|null" if float in [(*get_args(m), m)[0] for m in members] else _WORD


_READERS = {b'{"event": "%s"' % _name(kind): _reader(kind) for kind in _KEPT}


def _row(event: Any) -> _Row:
    """Return the row of an event that was read in another way."""
    found = {**vars(event), **(vars(event.memory) if isinstance(event, Stepped) else {})}
    names = (*_ALWAYS, *_KEPT[type(event)])
    return tuple(str(float(found[name])).encode() for name in names)


def _columns(names: Sequence[str], rows: Sequence[_Row]) -> Columns:
    """Return rows as columns by step; the last of equal steps counts, as a damaged log has them."""
    if not rows:
        return Columns(np.zeros(0), {name: np.zeros(0) for name in names})
    _, steps, *columns = (_numbers(column) for column in zip(*rows, strict=True))
    step, last = np.unique(steps[::-1], return_index=True)
    place = len(steps) - 1 - last
    return Columns(step, {n: each[place] for n, each in zip(names, columns, strict=True)})


def _numbers(written: Sequence[bytes]) -> Values:
    """Return numbers as they are written, with NaN for null and for what no run measures."""
    text = np.array(written)
    text[text == b"null"] = b"nan"
    values: Values = text.astype(np.float64)
    values[np.abs(values) > MOST_MEASURED] = np.nan
    return values


# ==== What is drawn of a column ===================================================================


def elapsed(steps: Columns) -> Values:
    """Return the seconds of training until after each step, those before a resume included."""
    seconds = np.nan_to_num(steps["seconds"], nan=0.0, posinf=0.0, neginf=0.0)
    return np.cumsum(np.maximum(seconds, 0.0))


def recent_seconds(steps: Columns) -> Values:
    """Return the mean seconds of a step, over it and those before, up to `RATE_STEPS`.

    Two steps can land together, so that the seconds of one alone say little.
    """
    total = np.concatenate([[0.0], elapsed(steps)])
    end = np.arange(1, len(steps) + 1)
    begin = np.maximum(end - RATE_STEPS, 0)
    mean: Values = (total[end] - total[begin]) / np.maximum(end - begin, 1)
    return mean


def smoothing(count: int) -> float:
    """Return the smoothing of a curve of so many points: nanochat's 0.9, in long runs more.

    >>> smoothing(300), smoothing(100_000)
    (0.9, 0.998)
    """
    return max(SMOOTHING, 1 - 200 / count) if count else SMOOTHING


def smoothed(values: Values) -> Values:
    """Return the exponential average of values, without those that are not finite.

    It begins with the first value, and so has no bias to zero. At first it goes over a fifth of the
    values so far only: a loss falls fast there, and the average would lag far behind it.
    """
    least, average, count = 1 - smoothing(len(values)), math.nan, 0
    result = []
    for value in values.tolist():
        if math.isfinite(value):
            count += 1
            share = max(least, min(1.0, FIRST_SHARE / count))
            average = average + share * (value - average) if count > 1 else value
        result.append(average)
    return np.array(result)


def thinned(values: Values, most: int) -> npt.NDArray[np.int64]:
    """Return the places of at most ``most`` points that a curve can be drawn from.

    Of each of equally long pieces the lowest and the highest point stay, so that no spike is lost,
    and one that is not finite, where there is one, in place of the lower of them. The first and
    the last point stay, too.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, max(1, (most - 2) // 2) + 1).astype(np.int64)
    kept = {0, count - 1}
    for begin, end in pairwise(edges.tolist()):
        piece = values[begin:end]
        finite = np.isfinite(piece)
        if not finite.all():
            kept.add(int(begin + np.argmin(finite)))
        else:
            kept.add(int(begin + np.argmin(piece)))
        if finite.any():
            kept.add(int(begin + np.argmax(np.where(finite, piece, -np.inf))))
    return np.array(sorted(kept), dtype=np.int64)
