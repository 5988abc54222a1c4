"""Charts as inline SVG, drawn once for each kind of x axis.

A chart holds all kinds of its x axis, by step, tokens, time and FLOPs, each linear and logarithmic;
the page's style sheet shows one of them, so that the switch needs no script. What is the same for
several kinds, as tokens and FLOPs of a run are to its steps, is drawn once.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlxchat.counts import round_duration, round_size
from mlxchat.report.series import Values
from mlxchat.report.words import (
    count_in_words,
    figure,
    power_of_ten_or_zero,
    share_in_words,
)

AxisName = Literal["step", "tokens", "time", "flops"]
AXES: dict[AxisName, str] = {
    "step": "steps",
    "tokens": "tokens",
    "time": "training time",
    "flops": "FLOPs",
}
SCALES = ("lin", "log")  # of the x axis
LINE_COLOURS = 6  # in the style sheet; more lines than that take the first again, in other dashes

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 36
TICKS = 5  # on an axis, about
_ROOM = 0.04  # of an axis beyond the values on it
LEAST_LOG = 1e-45  # on a logarithmic axis: no float32 is smaller

_UNITS: dict[str, Callable[[float], str]] = {
    "count": count_in_words,
    "bytes": lambda value: round_size(value).replace(".0 ", " ") if value else "0",
    "share": lambda value: share_in_words(value, 0),
    "number": lambda value: figure(value, 3),
}


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        label: the name, for the legend; empty for a line that another one explains.
        colour: its number.
        x: where its points are, by kind of axis; the kinds are the same for all lines of a page.
        y: the values; NaN makes a gap.
        faint: whether it lies behind another one, as what is not smoothed does.
        dotted: whether each point has a dot, as evaluations have, of which there are few.
        low, high: the ends of an interval around each point; None without.
    """

    label: str
    colour: int
    x: dict[AxisName, Values]
    y: Values
    faint: bool = False
    dotted: bool = False
    low: Values | None = None
    high: Values | None = None


class Mark(NamedTuple):
    """Something that happened in a run, such as a resume: a vertical line, or a ring at ``y``."""

    colour: int
    x: dict[AxisName, float]
    text: str
    y: float | None = None


class Level(NamedTuple):
    """A horizontal line with a name, such as the CORE of GPT-2."""

    y: float
    text: str


class Chart(NamedTuple):
    """A chart.

    Attributes:
        key: its name in the page.
        title: what it shows.
        unit: what y is counted in: count, bytes, share or number.
        lines: from the back to the front.
        log_y: whether the y axis is logarithmic, if all is positive.
        from_zero: whether the y axis begins at 0.
        series: the names in the page's data that the values on hover are taken from.
    """

    key: str
    title: str
    unit: str
    lines: Sequence[Line]
    log_y: bool = False
    from_zero: bool = False
    marks: Sequence[Mark] = ()
    levels: Sequence[Level] = ()
    series: Sequence[str] = ()


class AxisScale(NamedTuple):
    """The scale of an axis. On a logarithmic one, values of 0 and less have no place."""

    first: float
    last: float
    log: bool
    length: float

    def at(self, values: Values) -> Values:
        """Return the distances from the axis's beginning."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.log:
                first, last = math.log(self.first), math.log(self.last)
                share = (np.log(values) - first) / (last - first)
            else:
                share = (values - self.first) / (self.last - self.first)
        share = np.where(np.isfinite(share), share, np.nan)
        placed: Values = np.round(np.clip(share, -0.5, 1.5) * self.length, 1)
        return placed


def scale(
    values: Sequence[Values], length: float, log: bool = False, from_zero: bool = False
) -> AxisScale | None:
    """Return the scale that holds all finite values; None if there are none that it can hold.

    One that is asked to be logarithmic has room for positive values only.
    """
    joined = np.concatenate([np.zeros(0), *values])
    finite = joined[np.isfinite(joined) & ((joined >= LEAST_LOG) | (not log))]
    if not len(finite):
        return None
    first, last = float(finite.min()), float(finite.max())
    if from_zero and not log:
        first, last = min(0.0, first), max(0.0, last)
    if not last - first > 1e-9 * max(abs(first), abs(last)):  # a single value
        room = abs(last) / 10 or 1.0
        first, last = first - (0 if from_zero else room), last + room
    return AxisScale(first, last, log, length)


def roomy(axis: AxisScale) -> AxisScale:
    """Return a scale with room above and, unless it begins at 0, below its values."""
    if axis.log:
        factor = (axis.last / axis.first) ** _ROOM
        return axis._replace(first=axis.first / factor, last=axis.last * factor)
    room = (axis.last - axis.first) * _ROOM
    return axis._replace(first=axis.first - room * bool(axis.first), last=axis.last + room)


# ==== Ticks ======================================================================================

_WHOLE = ("step", "tokens")  # kinds of x axis on which there is nothing between two numbers
_TIMES = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200]


def ticks(axis: AxisScale, unit: str = "number") -> list[float]:
    """Return about `TICKS` numbers within a scale that are round in a unit.

    Args:
        axis: the scale.
        unit: of a chart, or the kind of an x axis.
    """
    if axis.log and axis.last / axis.first >= 6:
        return _log_ticks(axis)
    least = (axis.last - axis.first) / (1.6 * TICKS if axis.log else TICKS)
    step = _round_step(least, unit)
    begin = math.ceil(axis.first / step - 1e-9)
    end = math.floor(axis.last / step + 1e-9)
    return [number * step for number in range(begin, end + 1)][: 4 * TICKS]


def _round_step(least: float, unit: str) -> float:
    of_time = unit == "time"
    if unit in _WHOLE:
        least = max(1.0, least)
    if of_time and 0.5 < least < 43_200:
        return float(min(size for size in (*_TIMES, 86_400) if size >= least))
    whole = 86_400.0 if of_time and least >= 43_200 else 1.0
    power = 10.0 ** math.floor(math.log10(least / whole))
    factor = next(f for f in (1, 2, 5, 10, 20) if f * power >= least / whole * (1 - 1e-9))
    return factor * power * whole


def _log_ticks(axis: AxisScale) -> list[float]:
    first, last = math.floor(math.log10(axis.first)), math.ceil(math.log10(axis.last))
    decades = last - first
    factors: tuple[float, ...] = (1, 2, 5) if decades <= 2 else (1, 3) if decades <= 3 else (1,)
    if axis.last / axis.first < 15:
        factors = (1, 1.5, 2, 3, 4, 6, 8)
    every = max(1, -(-decades // (TICKS + 2)))
    powers = [10.0**power for power in range(first, last + 1) if power % every == 0]
    found = [factor * power for power in powers for factor in factors]
    return [value for value in found if axis.first <= value <= axis.last]


# ==== Drawing ====================================================================================


def svg(chart: Chart) -> str:
    """Return the chart as an ``svg`` element; empty if nothing of it can be drawn."""
    height = _HEIGHT - _TOP - _BOTTOM
    limits = [end for line in chart.lines for end in (line.low, line.high) if end is not None]
    ys = [line.y for line in chart.lines] + limits
    log = chart.log_y and all(bool((y[np.isfinite(y)] >= LEAST_LOG).all()) for y in ys)
    vertical = scale(ys, height, log, chart.from_zero)
    if vertical is None:
        return ""
    vertical = roomy(vertical)
    axes = tuple(chart.lines[0].x)
    drawn: dict[str, list[str]] = {}  # kinds of axis by what is drawn for them
    domains: dict[str, list[float]] = {}
    for axis in axes:
        for kind in SCALES:
            xs = [line.x[axis][np.isfinite(line.y)] for line in chart.lines]
            across = scale(xs, _WIDTH - _LEFT - _RIGHT, kind == "log", from_zero=True)
            if across is None:
                continue
            name = f"{axis}-{kind}"
            domains[name] = [across.first, across.last]
            for part in (_x_axis(axis, across), _lines(chart, axis, across, vertical)):
                drawn.setdefault(part, []).append(name)
    parts = [f'<g class="kind {" ".join(names)}">{part}</g>' for part, names in drawn.items()]
    facts = json.dumps({"x": domains, "y": [vertical.first, vertical.last, vertical.log]})
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'data-chart="{chart.key}" data-series="{escape(" ".join(chart.series))}" '
        f'data-unit="{chart.unit}" data-scales="{escape(facts)}">'
        f"{_y_axis(chart, vertical)}{''.join(parts)}</svg>"
    )


def _y_axis(chart: Chart, vertical: AxisScale) -> str:
    write = _UNITS[chart.unit]
    parts = []
    for value in _distinct(ticks(vertical, chart.unit), write):
        y = _down(vertical, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y}" dy=".34em" text-anchor="end">')
        parts.append(f"{escape(write(value))}</text>")
    for level in chart.levels:
        if vertical.first <= level.y <= vertical.last:
            y = _down(vertical, level.y)
            parts.append(f'<path class="level" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text class="level-name" x="{_LEFT + 4}" y="{y - 4:g}">')
            parts.append(f"{escape(level.text)}</text>")
    return "".join(parts)


def _distinct(values: Sequence[float], write: Callable[[float], str]) -> list[float]:
    """Return the values without those that are written like one before."""
    return list({write(value): value for value in reversed(values)}.values())[::-1]


def _x_axis(axis: AxisName, across: AxisScale) -> str:
    write = _writer(axis)
    bottom = _HEIGHT - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>']
    values = _distinct(ticks(across, axis), write)
    room = -math.inf
    for value in values:
        x = _LEFT + float(across.at(np.array([value]))[0])
        label = write(value)
        half = 3.6 * len(label)
        if x - half < room + 4:
            continue
        anchor = "end" if x + half > _WIDTH else "middle"
        room = x + half if anchor == "middle" else x
        parts.append(f'<path class="axis" d="M{x:g} {bottom}v4"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{bottom + 16}" text-anchor="{anchor}">')
        parts.append(f"{escape(label)}</text>")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="name" x="{middle:g}" y="{_HEIGHT - 4}" text-anchor="middle">')
    parts.append(f"{AXES[axis]}</text>")
    return "".join(parts)


def _writer(axis: AxisName) -> Callable[[float], str]:
    if axis == "time":
        return lambda seconds: round_duration(seconds) if seconds else "0"
    return power_of_ten_or_zero if axis == "flops" else count_in_words


def _down(vertical: AxisScale, value: float) -> float:
    """Return how far down in the picture a value is."""
    return float(np.round(_HEIGHT - _BOTTOM - vertical.at(np.array([value]))[0], 1))


def _lines(chart: Chart, axis: AxisName, across: AxisScale, vertical: AxisScale) -> str:
    parts = []
    for mark in chart.marks:
        parts.append(_mark(mark, axis, across, vertical))
    for line in chart.lines:
        x = _LEFT + across.at(line.x[axis])
        y = _HEIGHT - _BOTTOM - vertical.at(line.y)
        if line.low is not None and line.high is not None:
            low, high = (_HEIGHT - _BOTTOM - vertical.at(end) for end in (line.low, line.high))
            parts.append(
                f'<path class="band {line_style(line.colour)}" d="{_area(x, low, high)}"/>'
            )
        kind = "faint " if line.faint else ""
        parts.append(f'<path class="line {kind}{line_style(line.colour)}" d="{path(x, y)}"/>')
        placed = np.isfinite(x) & np.isfinite(y)
        at = placed if line.dotted else alone(placed)
        if at.any():
            dots = "".join(f"M{a:g} {b:g}h0" for a, b in zip(x[at], y[at], strict=True))
            parts.append(f'<path class="dots {line_style(line.colour)}" d="{dots}"/>')
    return "".join(parts)


def path(x: Values, y: Values) -> str:
    """Return a path through points, with a gap at each that has no place.

    >>> path(np.array([0.0, 1.5, 2, 3, 4]), np.array([1.0, 2, np.nan, 4, 5]))
    'M0 1 1.5 2M3 4 4 5'
    """
    words, pen = [], False
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if a != a or b != b:
            pen = False
            continue
        words.append(f"{' ' if pen else 'M'}{a:.5g} {b:.5g}")
        pen = True
    return "".join(words)


def alone(placed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which points have a place and no neighbour with one: a path does not show them.

    >>> alone(np.array([True, False, True, True])).tolist()
    [True, False, False, False]
    """
    around = np.concatenate([[False], placed, [False]])
    lonely: npt.NDArray[np.bool_] = placed & ~around[:-2] & ~around[2:]
    return lonely


def _area(x: Values, low: Values, high: Values) -> str:
    known = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return ""
    there, back = path(x[known], high[known]), path(x[known][::-1], low[known][::-1])
    return f"{there}L{back[1:]}Z"


def _mark(mark: Mark, axis: AxisName, across: AxisScale, vertical: AxisScale) -> str:
    x = _LEFT + float(across.at(np.array([mark.x[axis]]))[0])
    if not _LEFT <= x <= _WIDTH - _RIGHT:
        return ""
    title = f"<title>{escape(mark.text)}</title>"
    if mark.y is None:
        bottom = _HEIGHT - _BOTTOM
        return (
            f'<g class="resume {line_style(mark.colour)}">{title}<path d="M{x:g} {_TOP}V{bottom}"/>'
            f'<path class="flag" d="M{x:g} {_TOP - 8}l7 4-7 4z"/>'
            f'<rect x="{x - 5:g}" y="0" width="10" height="{bottom}"/></g>'
        )
    y = _down(vertical, mark.y)
    look = line_style(mark.colour)
    return f'<circle class="best {look}" cx="{x:g}" cy="{y:g}" r="5">{title}</circle>'


def line_style(number: int) -> str:
    """Return the classes of a line: its colour and its dashes, of which no two pairs are the same.

    >>> line_style(1), line_style(7)
    ('c1 d1', 'c1 d2')
    """
    return f"c{number % LINE_COLOURS} d{dashes(number)}"


def dashes(number: int) -> int:
    """Return the number of a line's dashes."""
    return (number + number // LINE_COLOURS) % LINE_COLOURS


def axes_of(charts: Sequence[Chart]) -> Iterator[AxisName]:
    """Yield the kinds of axis that all charts have, in the order of `AXES`."""
    for axis in AXES:
        if all(axis in line.x for chart in charts for line in chart.lines):
            yield axis
