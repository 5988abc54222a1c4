"""The page of a report: one HTML file with its styles, its script, its charts and its data.

It asks for nothing from outside, and everything but the values on hover works without a script.
"""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from mlxchat import __version__
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.counts import counted
from mlxchat.errors import command
from mlxchat.report.charts import AXES, Chart, axes_of, svg
from mlxchat.report.curves import RunCurves, charts, in_json, run_curves
from mlxchat.report.facts import RunFacts
from mlxchat.report.figures import compared_figures, run_tiles, swatch
from mlxchat.report.samples import last_samples, samples_over_time
from mlxchat.report.scores import TaskScore
from mlxchat.report.tables import (
    Html,
    code,
    compared_settings,
    core_table,
    data_table,
    evaluations_table,
    folded,
    html,
    judged_table,
    moment,
    notes_list,
    parameters_table,
    provenance_table,
    settings_table,
    tasks_table,
)
from mlxchat.report.words import (
    count_in_words,
    time_in_words,
)

LOOK = Path(__file__).parent / "look"
NAMES_IN_TITLE = 4
GENERATOR = '<meta name="generator" content="mlxchat'  # tells a report from other files


class Shown(NamedTuple):
    """A run to show, and what `mlxchat eval base` has measured of it."""

    facts: RunFacts
    scores: Sequence[TaskScore] = ()


def page(runs: Sequence[Shown], now: float) -> str:
    """Return the HTML of a report of one or more runs.

    Args:
        runs: the runs; the first one is what the others are compared with.
        now: the time of day, which the report says.
    """
    curves = [run_curves(run.facts, len(runs)) for run in runs]
    generator = f"mlxchat {__version__}, {moment(now)}"
    names = ", ".join(run.facts.name for run in runs)
    body: list[str] = [_heading([run.facts for run in runs], now)]
    body += [_curves(curves)]
    if len(runs) > 1:
        body += _compared([run.facts for run in runs])
        for number, run in enumerate(runs):
            content = "".join(_sections(run, generator, level=3))
            title = Html(f"{swatch(number)} {escape(run.facts.name)}")
            body.append(f'<section class="run">{folded(title, content)}</section>')
    else:
        body += _sections(runs[0], generator, level=2)
    data = {
        "generator": f"mlxchat {__version__}",
        "written": now,
        "runs": [in_json(run) for run in curves],
    }
    return _document(names, "".join(body), data, generator)


def _document(names: str, body: str, data: object, generator: str) -> str:
    style = (LOOK / "report.css").read_text("utf-8")
    script = (LOOK / "report.js").read_text("utf-8")
    switches = [
        f'<input class="switch" type="radio" name="x" id="x-{axis}" aria-label="by {words}"'
        f"{' checked' if axis == 'step' else ''}>"
        for axis, words in AXES.items()
    ] + [
        '<input class="switch" type="radio" name="scale" id="scale-lin" aria-label="linear" '
        "checked>",
        '<input class="switch" type="radio" name="scale" id="scale-log" aria-label="logarithmic">',
    ]
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'{GENERATOR} {__version__}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(names)} · mlxchat report</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *switches,
            f"<main>{body}",
            f"<footer>Written by {escape(generator)}. The numbers behind the curves are in this "
            "file as JSON, in the element <code>data</code>.</footer></main>",
            f'<script type="application/json" id="data">{_embedded(data)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _embedded(data: object) -> str:
    """Return a value as JSON that no text in it can end the element of."""
    written = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ==== The top ====================================================================================


def _heading(runs: Sequence[RunFacts], now: float) -> Html:
    names = [facts.name for facts in runs]
    title = ", ".join(names if len(runs) <= NAMES_IN_TITLE else [*names[:2], "…"])
    lead = "".join(f"<p>{html(_sentence(facts))}</p>" for facts in runs[:1] if len(runs) == 1)
    notices = "".join(
        f'<p class="notice">{html(text)}</p>'
        for facts in runs
        for text in _notices(facts, now, named=len(runs) > 1)
    )
    figures = run_tiles(runs[0]) if len(runs) == 1 else compared_figures(runs)
    kind = "Run report" if len(runs) == 1 else f"{len(runs)} runs compared"
    return Html(
        f'<header><p class="kind-of-page">{kind}</p><h1>{escape(title)}</h1>{lead}{notices}'
        f"</header>{figures}"
    )


def _sentence(facts: RunFacts) -> str:
    """Return what was trained, on what, and how long, in a sentence or two."""
    if facts.state is None:
        return _of_untrained(facts)
    what = facts.stage.capitalize() if facts.stage else "Training"
    size = f"a model of {count_in_words(facts.parameters)} parameters" if facts.parameters else ""
    if facts.trainer and size:
        model = facts.trainer.plan.model
        size += f" ({model.arch}, {counted(model.n_layer, 'layers')} of width {model.n_embd:,})"
    data = (
        "; ".join(facts.history.trainings[-1].data)
        if facts.history and (facts.history.trainings)
        else ""
    )
    on = f" on {facts.device}" if facts.device else ""
    first = f"{what} of {size or 'a model'}{f' on {data}' if data else ''}."
    steps = counted(facts.step, "steps")
    tokens = f" of {facts.tokens_per_step:,} tokens" if facts.tokens_per_step else ""
    how_long = f", in {time_in_words(facts.seconds)} of training" if facts.seconds else ""
    return f"{first} {steps}{tokens}{on}{how_long}."


def _of_untrained(facts: RunFacts) -> str:
    """Return where a model is from that was not trained as this run, in a sentence."""
    if facts.history and facts.history.trainings:
        return f"A model that was made from {facts.history.trainings[-1].run}, without training."
    if facts.history and facts.history.origin:
        return f"A model that was imported from {facts.history.origin.program}."
    return "A model that was not trained by a run of this name."


def _notices(facts: RunFacts, now: float, named: bool) -> Iterator[str]:
    """Yield what a reader should know before the figures: that it goes on, or what is missing."""
    name = facts.name if named else "This run"
    of = f"step {facts.step:,} of {facts.total_steps:,}" if facts.total_steps else "unknown steps"
    if facts.state == "running":
        left = facts.seconds_left
        about = f", about {time_in_words(left)} left" if left else ""
        yield (
            f"{name} is still training. When this page was written, on {moment(now)}, it was at "
            f"{of}{about}."
        )
    elif facts.state == "silent":
        yield (
            f"{name} has not ended. It was last heard of on {moment(facts.log.last)}, at {of}. It "
            "may still be running on another machine."
        )
    elif facts.state == "interrupted":
        yield f"{name} was stopped at {of}. It can be resumed."
    elif facts.state == "failed":
        why = facts.status.failure if facts.status and facts.status.failure else "unknown"
        yield f"{name} failed at {of}: {why}"
    elif facts.state == "died":
        yield f"{name} ended at {of} without saving: its process was killed, or crashed."
    for fault in facts.faults:
        yield f"{facts.name}: {fault}" if named else fault
    if named and not facts.log.lines and facts.trainer is None:
        yield f"{name}: there is nothing to draw."


# ==== Curves =====================================================================================


def _curves(runs: Sequence[RunCurves]) -> Html:
    drawn = charts(runs)
    figures = [(chart, svg(chart)) for chart in drawn]
    figures = [(chart, picture) for chart, picture in figures if picture]
    if not figures:
        return Html()
    axes = list(axes_of(drawn))
    labels = "".join(f'<label for="x-{axis}">{AXES[axis]}</label>' for axis in axes)
    controls = (
        f'<div class="controls"><span>by</span>{labels}<span class="gap"></span>'
        '<label for="scale-lin">linear</label><label for="scale-log">log</label></div>'
    )
    legend = ""
    if len(runs) > 1:
        entries = [f"<li>{swatch(n)} {escape(run.facts.name)}</li>" for n, run in enumerate(runs)]
        legend = f'<ul class="legend">{"".join(entries)}</ul>'
    several = " several" if len(runs) > 1 else ""
    cells = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{picture}</figure>"
        for chart, picture in figures
    )
    return Html(
        f'<section class="curves{several}"><div class="bar"><h2>Curves</h2>{controls}</div>'
        f'{legend}<div class="charts">{cells}</div>{_explained(runs, drawn)}</section>'
    )


def _explained(runs: Sequence[RunCurves], drawn: Sequence[Chart]) -> str:
    """Return what the lines mean: smoothing, thinning, resumes, intervals."""
    parts = []
    if any(line.faint for chart in drawn for line in chart.lines):
        parts.append("Faint: each step. Strong: exponential average.")
    if any(mark.y is not None for chart in drawn for mark in chart.marks):
        parts.append("Ring: the best evaluation.")
    if any(mark.y is None for chart in drawn for mark in chart.marks):
        parts.append("Dotted vertical lines: the run was resumed there.")
    if any(line.low is not None for chart in drawn for line in chart.lines):
        parts.append("Bands: 95% intervals.")
    most = max((s.of for run in runs for s in run.series.values()), default=0)
    if any(s.of > len(s.step) for run in runs for s in run.series.values()):
        parts.append(
            f"Of up to {most:,} points, only the lowest and highest of each stretch are drawn, so "
            "that no spike is lost."
        )
    return f'<p class="remark">{escape(" ".join(parts))}</p>' if parts else ""


# ==== Below the curves ===========================================================================


def _compared(runs: Sequence[RunFacts]) -> list[Html]:
    different = compared_settings(runs, only_different=True)
    alike = folded("Settings that are the same", compared_settings(runs, only_different=False))
    return [
        _section("Settings that differ", different or Html("<p>None are known.</p>"), alike),
        _section("Samples at the end", last_samples(runs)),
    ]


def _section(title: str, *content: str, level: int = 2) -> Html:
    joined = "".join(content)
    if not joined:
        return Html()
    return Html(f"<section><h{level}>{escape(title)}</h{level}>{joined}</section>")


def _sections(run: Shown, generator: str, level: int) -> list[Html]:
    """Return the sections on one run."""
    facts = run.facts
    core = core_table(facts, run.scores)
    remark = Html()
    if core:
        remark = Html(
            '<p class="remark">Centered: 0 for guessing, 1 for all right; CORE is the mean. '
            "The order of the data alone moves CORE by about 0.016.</p>"
        )
    tasks = tasks_table(facts)
    explained = Html()
    if tasks:
        explained = Html(
            '<p class="remark">Measured by mlxchat eval chat. In parentheses: 95% intervals. '
            "Centered: 0 for guessing, 1 for all right.</p>"
        )
    again = Html()
    if facts.trainer is not None and facts.state in ("interrupted", "failed", "died"):
        resume = command(COMMAND_OF_STAGE[facts.trainer.stage], resume=facts.name)
        again = Html(f"<p>To resume it: {code(resume)}</p>")
    return [
        _section("Samples", samples_over_time(facts), level=level),
        _section("CORE by task", core, remark, level=level),
        _section("Tasks", tasks, explained, level=level),
        _section("Held-out questions", judged_table(facts), level=level),
        _section("Evaluations", folded("All evaluations", evaluations_table(facts)), level=level),
        _section("Model", parameters_table(facts), level=level),
        _section("Data", data_table(facts), level=level),
        _section("Settings", settings_table(facts), level=level),
        _section("Provenance", again, provenance_table(facts, generator), level=level),
        _section("Notes", folded("Messages of the run", notes_list(facts)), level=level),
    ]
