"""The curves of runs: the charts of a report, what is drawn in them, and the numbers behind them.

The numbers go into the page as JSON, under the names of `Chart.series`, so that the page is also
the record of a run.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxchat.counts import Z_OF_95
from mlxchat.evaluate.core_tasks import GPT2_CORE, GPT2_SIZES
from mlxchat.report.charts import AxisName, Chart, Level, Line, Mark
from mlxchat.report.facts import LEAST_STEP_SECONDS, RunFacts, interruptions
from mlxchat.report.scores import results_in_json
from mlxchat.report.series import Columns, Values, recent_seconds, smoothed, thinned
from mlxchat.report.words import bits_in_words, share_in_words

MOST_POINTS_DRAWN = 1000  # of a curve; with several runs, of the curves of one chart together
LEAST_POINTS_DRAWN = 120
MOST_WITH_STEPS = 4  # runs in a chart that shows each step behind the average


class Series(NamedTuple):
    """A quantity of a run, thinned, by step.

    Attributes:
        name: its name in the page's data.
        step, seconds: where each point is.
        value: NaN for what was not finite.
        low, high: the ends of an interval; None without.
        of: how many points there were before it was thinned.
    """

    name: str
    step: Values
    seconds: Values
    value: Values
    of: int
    low: Values | None = None
    high: Values | None = None


class RunCurves(NamedTuple):
    """All series of a run, by name."""

    facts: RunFacts
    series: dict[str, Series]


def run_curves(facts: RunFacts, runs: int = 1) -> RunCurves:
    """Return the series of a run, thinned for a page of so many runs."""
    most = max(LEAST_POINTS_DRAWN, MOST_POINTS_DRAWN // runs)
    found = {}
    for name, step, value, *limits in _quantities(facts):
        if not np.isfinite(value).any():
            continue
        kept = thinned(value, most)
        low, high = (end[kept] for end in limits) if limits else (None, None)
        seconds = facts.log.seconds_at(step[kept])
        found[name] = Series(name, step[kept], seconds, value[kept], len(value), low, high)
    return RunCurves(facts, found)


def _quantities(facts: RunFacts) -> Iterator[tuple[Any, ...]]:
    """Yield each quantity: name, steps, values, and the ends of an interval if it has one."""
    log = facts.log
    steps, drawn = log.steps, log.rewards
    yield "bits_per_byte", log.evaluations.step, log.evaluations["bits_per_byte"]
    yield from _with_average("loss", steps, log.averaged)
    yield "learning_rate", steps.step, steps["learning_rate"]
    yield from _with_average("gradient_norm", steps)
    yield "peak_memory", steps.step, steps["peak"]
    seconds = recent_seconds(steps)
    seconds = np.where(seconds > LEAST_STEP_SECONDS, seconds, np.nan)
    if facts.tokens_per_step:
        yield "tokens_per_second", steps.step, facts.tokens_per_step / seconds
    else:
        yield "seconds_per_step", steps.step, seconds
    yield from _with_average("reward", drawn, log.averaged)
    for name in ("entropy", "length", "cut_off"):
        yield name, drawn.step, drawn[name]
    judged = {event.step: event for event in log.judged}
    at = np.array(sorted(judged), dtype=np.float64)
    for name in ("pass_1", "pass_k"):
        ends = [
            np.array([getattr(judged[int(step)], f"{name}{end}") for step in at])
            for end in ("", "_low", "_high")
        ]
        yield name, at, *ends
    core = {event.step: event for event in log.core}
    at = np.array(sorted(core), dtype=np.float64)
    value = np.array([core[int(step)].core for step in at])
    error = Z_OF_95 * np.array([core[int(step)].error for step in at])
    yield "core", at, value, value - error, value + error


def _with_average(
    name: str, columns: Columns, averaged: bool = False
) -> Iterator[tuple[str, Values, Values]]:
    """Yield a column and its exponential average, or the latter only if it is one already.

    Where a value is not finite, the average has a gap, too: a diverged run must not look sound.
    """
    values = columns[name]
    if not averaged:
        yield name, columns.step, values
        values = np.where(np.isfinite(values), smoothed(values), np.nan)
    yield f"{name}_smoothed", columns.step, values


class _Kind(NamedTuple):
    """A kind of chart: its title, and the series in it, from the back to the front."""

    key: str
    title: str
    unit: str
    series: tuple[str, ...]
    log_y: bool = False
    from_zero: bool = False


_KINDS = (
    _Kind("pass_1", "Held-out questions answered right: pass@1", "share", ("pass_1",)),
    _Kind("pass_k", "At least one of {k} answers right: pass@{k}", "share", ("pass_k",)),
    _Kind("reward", "Reward of the answers drawn", "number", ("reward", "reward_smoothed")),
    _Kind("bits", "Validation, bits per byte", "number", ("bits_per_byte",), log_y=True),
    _Kind("loss", "Training loss, nats", "number", ("loss", "loss_smoothed"), log_y=True),
    _Kind("core", "CORE", "number", ("core",)),
    _Kind("entropy", "Entropy of the next token, nats", "number", ("entropy",), from_zero=True),
    _Kind("length", "Tokens per answer", "count", ("length",), from_zero=True),
    _Kind("rate", "Learning rate of the matrices", "number", ("learning_rate",), from_zero=True),
    _Kind(
        "norm",
        "Gradient norm before clipping",
        "number",
        ("gradient_norm", "gradient_norm_smoothed"),
        log_y=True,
    ),
    _Kind("speed", "Tokens per second", "count", ("tokens_per_second",), from_zero=True),
    _Kind("pace", "Seconds per step", "number", ("seconds_per_step",), from_zero=True),
    _Kind("memory", "MLX's peak memory", "bytes", ("peak_memory",), from_zero=True),
)


def charts(runs: Sequence[RunCurves]) -> list[Chart]:
    """Return the charts of runs, laid over each other; without those that have nothing to show.

    The loss of reinforcement learning is none: it says nothing about the model.
    """
    shown = [run.facts for run in runs if run.series]  # one without curves forbids no axis
    axes = [axis for axis, has in _AXES.items() if all(map(has, shown))]
    drawn = any(run.facts.drawn for run in runs)
    found = []
    for kind in _KINDS:
        if drawn and kind.key == "loss":
            continue
        lines = [
            _line(run, number, name, axes, faint=place < len(kind.series) - 1)
            for number, run in enumerate(runs)
            for place, name in enumerate(kind.series)
            if name in run.series and (len(runs) <= MOST_WITH_STEPS or name == kind.series[-1])
        ]
        if not lines:
            continue
        lines.sort(key=lambda line: not line.faint)
        found.append(
            Chart(
                key=kind.key,
                title=_title(kind, runs),
                unit=kind.unit,
                lines=lines,
                log_y=kind.log_y,
                from_zero=kind.from_zero,
                marks=list(_marks(kind, runs, axes)),
                levels=_levels() if kind.key == "core" else (),
                series=kind.series if len(runs) <= MOST_WITH_STEPS else kind.series[-1:],
            )
        )
    return found


def _title(kind: _Kind, runs: Sequence[RunCurves]) -> str:
    ks = {event.samples for run in runs for event in run.facts.log.judged}
    return kind.title.format(k=ks.pop() if len(ks) == 1 else "k")


def _levels() -> list[Level]:
    pairs = zip(GPT2_SIZES, GPT2_CORE, strict=True)
    return [Level(core, f"GPT-2 {size}") for size, core in pairs]


_AXES: dict[AxisName, Callable[[RunFacts], bool]] = {
    "step": lambda facts: True,
    "tokens": lambda facts: facts.tokens_per_step is not None,
    "time": lambda facts: facts.seconds > 0 and len(facts.log.steps) > 0,
    "flops": lambda facts: bool(facts.flops_at(1.0)),
}


def _places(facts: RunFacts, step: Values, seconds: Values) -> dict[AxisName, Values]:
    return {
        "step": step,
        "tokens": step * (facts.tokens_per_step or 0),
        "time": seconds,
        "flops": step * (facts.flops_at(1.0) or 0.0),
    }


def _line(run: RunCurves, colour: int, name: str, axes: Sequence[AxisName], faint: bool) -> Line:
    series = run.series[name]
    places = _places(run.facts, series.step, series.seconds)
    return Line(
        label=run.facts.name,
        colour=colour,
        x={axis: places[axis] for axis in axes},
        y=series.value,
        faint=faint,
        dotted=name in ("bits_per_byte", "pass_1", "pass_k", "core") and len(series.step) <= 60,
        low=series.low,
        high=series.high,
    )


def _marks(kind: _Kind, runs: Sequence[RunCurves], axes: Sequence[AxisName]) -> Iterator[Mark]:
    """Yield the resumes of all runs, and the best evaluation where that is what is drawn."""
    for number, run in enumerate(runs):
        name = f"{run.facts.name}: " if len(runs) > 1 else ""
        points: list[tuple[int, str, float | None]] = [
            (step, f"{name}{text}", None) for step, text in interruptions(run.facts)
        ]
        best = run.facts.best
        if kind.key == "bits" and best:
            step, bits = best
            text = f"{name}lowest, {bits_in_words(bits)} at step {step:,}"
            points.append((step, text, bits))
        if kind.key == "pass_1" and run.facts.log.judged:
            top = max(run.facts.log.judged, key=lambda event: event.pass_1)
            text = f"{name}highest, {share_in_words(top.pass_1)} at step {top.step:,}"
            points.append((top.step, text, top.pass_1))
        for step, text, y in points:
            at = np.array([float(step)])
            places = _places(run.facts, at, run.facts.log.seconds_at(at))
            yield Mark(number, {axis: float(places[axis][0]) for axis in axes}, text, y)


# ==== The numbers behind them ====================================================================


def in_json(run: RunCurves) -> dict[str, Any]:
    """Return the numbers of a run for the page's data."""
    series = {name: _series(series) for name, series in run.series.items()}
    return {**facts_in_json(run.facts), "series": series}


def facts_in_json(facts: RunFacts) -> dict[str, Any]:
    """Return the figures of a run, without its curves."""
    return {
        "name": facts.name,
        "stage": facts.stage,
        "state": facts.state,
        "device": facts.device,
        "software": list(facts.software),
        "parameters": facts.parameters,
        "step": facts.step,
        "total_steps": facts.total_steps,
        "tokens_per_step": facts.tokens_per_step,
        "flops_per_token": facts.flops_per_token,
        "tokens": facts.tokens,
        "flops": facts.flops,
        "seconds": facts.seconds,
        "bits_per_byte": facts.final_bits,
        "best": facts.best,
        "tokens_per_second": facts.tokens_per_second,
        "mfu": facts.mfu,
        "peak_memory": facts.peak_memory or None,
        "resumes": [{"step": step, "text": text} for step, text in interruptions(facts)],
        "core": [
            {"step": e.step, "core": e.core, "error": e.error, "centered": e.centered}
            for e in facts.log.core
        ],
        "tasks": results_in_json(facts.tasks),
        "faults": list(facts.faults),
    }


def _series(series: Series) -> dict[str, Any]:
    found: dict[str, Any] = {
        "points": series.of,
        "step": series.step.astype(np.int64).tolist(),
        "seconds": [round(value, 2) for value in series.seconds.tolist()],
        "value": _rounded(series.value),
    }
    if series.low is not None and series.high is not None:
        found |= {"low": _rounded(series.low), "high": _rounded(series.high)}
    return found


def _rounded(values: Values) -> list[float]:
    """Return values with six significant digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]
