"""The output of `mlxchat runs show` and `runs compare`: one run in detail, runs side by side."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.text import Text

from mlxchat.counts import duration, score_within, share_within
from mlxchat.harmless import harmless
from mlxchat.report.description import RunDescription
from mlxchat.report.differences import Comparison, differing_settings
from mlxchat.report.provenance import SettingRow
from mlxchat.report.runs import ModelFacts, RunSummary
from mlxchat.report.scores import StepResults, beside_each_other, result_in_words
from mlxchat.ui.monitor import ending_in_words
from mlxchat.ui.output import PIPE_WIDTH, LiteralConsole, console_for
from mlxchat.ui.runs import (
    GRID_GAP,
    UNKNOWN,
    in_short,
    model_in_brief,
    print_grid,
    print_line,
    state_color,
    steps_in_brief,
)
from mlxchat.ui.text import amount, as_options, in_one_line, wrapped
from mlxchat.ui.wrapping import in_lines

WHEN = "%d %b %Y, %H:%M"


# ==== One run ====


def show_description(
    run: RunDescription, everything: bool = False, now: float | None = None
) -> None:
    """Print a run in detail.

    Args:
        everything: show the settings that are defaults, too.
        now: seconds since the epoch.
    """
    now = time.time() if now is None else now
    console, summary = console_for(sys.stdout), run.summary
    state = summary.state or "model"
    title = Text.assemble((in_one_line(summary.name), "bold"), "  ", (state, state_color(summary)))
    print_line(console, title)
    if summary.state == "unreadable":
        _paragraph(console, f"{summary.fault} This says nothing about its checkpoints.")
    elif summary.state:
        _paragraph(console, _ending(summary, now))
    if run.fault:
        _paragraph(console, run.fault)
    _facts(console, "", _overview(run))
    _settings(console, run.rows, everything)
    _facts(console, "Checkpoints", _steps(run))
    for judged in run.tasks:
        _facts(console, f"Tasks at step {judged.step:,}", _results(judged))
    for problem in run.unread:
        _paragraph(console, problem)
    if run.samples:
        _heading(console, f"Samples after step {run.samples[0].step:,}")
        for sample in run.samples:
            said = Text.assemble(
                (in_one_line(sample.prompt.strip()), "dim"), " → ", in_one_line(sample.text.strip())
            )
            console.print(said)
    if run.command:
        _heading(console, "The command that repeats it")
        print_line(console, Text(run.command))


def _ending(run: RunSummary, now: float) -> str:
    assert run.state
    said = ending_in_words(run.state, run.when, run.saved_steps, run.failure, now)
    return said or f"Training since {datetime.fromtimestamp(run.began or now):{WHEN}}."


def _overview(run: RunDescription) -> list[tuple[str, str]]:
    summary, facts = run.summary, list[tuple[str, str]]()

    def add(name: str, value: object) -> None:
        if value not in (None, "", ()):
            facts.append((name, str(value)))

    add("stage", summary.stage if summary.state else None)
    add("model", _model_in_words(summary.model))
    add("imported from", run.origin)
    add("made from", run.made_from)
    gone = "" if run.base_is_there else ", which was renamed or removed"
    add("began with", summary.began_with and f"{summary.began_with}{gone}")
    add("data", ", ".join(run.data))
    add("steps", None if summary.step is None else steps_in_brief(summary))
    add("tokens", summary.tokens and f"{summary.tokens:,}")
    add("FLOPs", summary.flops and f"{summary.flops:.3g}")
    add("bits per byte", _bits_in_words(summary))
    if (right := _share_right(run)) is not None:
        add("pass@1", f"{right} of held-out questions after step {summary.scores[-1][0]:,}")
    if summary.core:
        last = summary.core[-1]
        add("CORE", f"{score_within(last.core, last.error)} after step {last.step:,}")
    add("time", None if summary.seconds is None else f"{duration(summary.seconds)} of training")
    if summary.tokens and summary.seconds:
        add("speed", f"{summary.tokens / summary.seconds:,.0f} tokens/s")
    add("peak memory", summary.peak_memory and amount(summary.peak_memory, "bytes"))
    for number, start in enumerate(run.starts):
        began = "resumed" if number else "started"
        at = f" at step {start.step:,}" if start.step else ""
        add(began, f"{datetime.fromtimestamp(start.time):{WHEN}}{at}, {start.where}")
        if number == 0 or start.software != run.starts[number - 1].software:
            add("software", start.software)
    add("size", amount(summary.bytes, "bytes"))
    add("folder", summary.places.folder)
    add("log", summary.places.log)
    add("evaluations", _evaluations_in_words(run))
    add("later runs", ", ".join(run.continued))
    add("saved by", run.versions)
    return facts


def _evaluations_in_words(run: RunDescription) -> str:
    files, others = len(run.summary.places.evaluations), len(run.of_other_models)
    own = amount(files - others, "files") if files else ""
    return f"{own}, and {others:,} of an earlier model of that name" if others else own


def _model_in_words(model: ModelFacts) -> str:
    parts = [model.arch or ""]
    if model.layers is not None:
        parts.append(f"{amount(model.layers, 'layers')} of width {model.width:,}")
    if model.parameters is not None:
        parts.append(f"{model.parameters:,} parameters")
    parts.append(f"{model.bits} bits" if model.bits else "")
    parts.append(f"adapter on {model.base}" if model.base else "")
    return ", ".join(filter(None, parts))


def _bits_in_words(run: RunSummary) -> str:
    if run.bits_per_byte is None:
        return ""
    step, best = run.best or (0, run.bits_per_byte)
    last = f"{run.bits_per_byte:.4f} after step {run.evaluations[-1][0]:,}"
    return (
        last if step == run.evaluations[-1][0] else f"{last}; best {best:.4f} after step {step:,}"
    )


def _share_right(run: RunDescription) -> str | None:
    """Return pass@1 in the last evaluation, with its interval if the log has it."""
    if run.summary.pass_1 is None:
        return None
    last = run.judged
    if last is None or last.step != run.summary.scores[-1][0]:
        return share_within(run.summary.pass_1)
    return share_within(last.pass_1, (last.pass_1_low, last.pass_1_high))


def _results(judged: StepResults) -> list[tuple[str, str]]:
    return [
        (each.task, f"{result_in_words(each)} · {datetime.fromtimestamp(each.time):{WHEN}}")
        for each in judged.results
    ]


def _settings(console: LiteralConsole, rows: Sequence[SettingRow], everything: bool) -> None:
    for title, origin in (("Settings", "given"), ("Derived", "derived"), ("Defaults", "default")):
        chosen = [row for row in rows if row.origin == origin]
        if chosen and (origin != "default" or everything):
            _facts(console, title, [(row.name, row.value) for row in chosen])


def _steps(run: RunDescription) -> list[tuple[str, str]]:
    bits = dict(run.summary.evaluations)
    return [
        (
            f"step {saved.step:,}",
            " · ".join(
                filter(
                    None,
                    (
                        f"{bits[saved.step]:.4f} bits/byte" if saved.step in bits else "",
                        amount(saved.bytes, "bytes"),
                        f"{datetime.fromtimestamp(saved.saved):{WHEN}}",
                    ),
                )
            ),
        )
        for saved in run.steps
    ]


def _facts(console: LiteralConsole, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print names with their values beside them; below them if a path needs a whole line."""
    if not facts:
        return
    _heading(console, title)
    width = console.width if console.is_terminal else PIPE_WIDTH
    label = max(len(name) for name, _ in facts) + GRID_GAP
    for name, value in facts:
        if max(map(len, value.split()), default=0) > width - label:  # a path, to be copied whole
            print_line(console, Text(name, "dim"))
            print_line(console, Text(in_lines(in_one_line(value), width)))
            continue
        shown = [harmless(line.plain) for line in wrapped(value, max(10, width - label))] or [""]
        for number, line in enumerate(shown):
            beside = f"{name if number == 0 else '':<{label}}"
            print_line(console, Text.assemble((beside, "dim"), line))


def _heading(console: LiteralConsole, title: str) -> None:
    console.print()
    if title:
        print_line(console, Text(title, "bold cyan"))


def _paragraph(console: LiteralConsole, text: str) -> None:
    print_line(console, Text(in_lines(in_one_line(as_options(text)), console.width)))


# ==== Several runs ====


def show_comparison(runs: Sequence[RunDescription], found: Comparison) -> None:
    """Print runs side by side, or one below the other where the terminal is too narrow."""
    console = console_for(sys.stdout)
    differing = differing_settings(runs)
    settings = [
        [name, *(UNKNOWN if row is None else _marked(row) for row in values)]
        for name, values in differing
    ]
    names = [in_one_line(run.summary.name) for run in runs]
    rows = _measurements(runs)
    empty = [[""] * (1 + len(runs))] if settings else []
    if not print_grid(console, ["", *names], [*rows, *empty, *settings], set()):
        _print_below(console, names, [*rows, *settings])
    if any(row and row.origin == "derived" for _, values in differing for row in values):
        print_line(console, Text("* derived", "dim"))
    if not settings:
        console.print()
        unknown = [in_one_line(run.summary.name) for run in runs if not run.rows]
        same = f"The settings of {' and '.join(unknown)} are not known."
        print_line(console, Text(same if unknown else "Their settings are the same."))
    console.print()
    better = f"Better: {found.best}, " if found.best else ""
    console.print(Text(in_one_line(f"{better}{found.reason}"), "bold" if found.best else ""))


def _measurements(runs: Sequence[RunDescription]) -> list[list[str]]:
    of = [run.summary for run in runs]

    def row(title: str, shown: Callable[[RunSummary], str | None]) -> list[str]:
        return [title, *(shown(run) or UNKNOWN for run in of)]

    rows = [
        row("state", lambda run: run.state or "model"),
        row("stage", lambda run: run.command),
        row("model", lambda run: model_in_brief(run.model)),
        row("bits/byte", lambda run: _formatted(run.bits_per_byte, ".4f")),
        row("best", lambda run: _formatted(run.best and run.best[1], ".4f")),
        ["pass@1", *(_share_right(run) or UNKNOWN for run in runs)],
        row("steps", steps_in_brief),
        row("tokens", lambda run: None if run.tokens is None else in_short(run.tokens)),
        row("FLOPs", lambda run: _formatted(run.flops, ".3g")),
        row("time", lambda run: None if run.seconds is None else duration(run.seconds)),
        row("size", lambda run: amount(run.bytes, "bytes")),
    ]
    if rows[3][1:] == rows[4][1:]:
        del rows[4]
    rows += _tasks_in_brief(runs)
    return [row for row in rows if any(cell != UNKNOWN for cell in row[1:])]


def _tasks_in_brief(runs: Sequence[RunDescription]) -> list[list[str]]:
    """Return a row for each task: what the newest step of each run that has results got right."""
    rows = []
    for task, results in beside_each_other([run.tasks for run in runs]).items():
        row = [task]
        for run, result in zip(runs, results, strict=True):
            if result is None:
                row.append(UNKNOWN)
                continue
            step = run.tasks[-1].step
            at = "" if step == run.summary.saved_steps[-1] else f", step {step:,}"
            row.append(f"{result.interval} of {result.asked:,}{at}")
        rows.append(row)
    return rows


def _formatted(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _marked(row: SettingRow) -> str:
    return f"{row.value} *" if row.origin == "derived" else row.value


def _print_below(
    console: LiteralConsole, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print for each fact the value of each run below its name."""
    label = max(map(len, names)) + GRID_GAP
    for title, *values in rows:
        print_line(console, Text(title, "bold"))
        for name, value in zip(names, values, strict=True):
            shown = wrapped(value, max(10, console.width - label - GRID_GAP)) or [Text()]
            for number, line in enumerate(shown):
                beside = f"{name if number == 0 else '':<{label}}"
                print_line(console, Text.assemble("  ", (beside, "dim"), line))
