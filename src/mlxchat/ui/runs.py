"""What `mlxchat runs` prints: tables of runs, one run in detail, runs side by side.

Where a terminal is too narrow for a table, each run is a few short lines.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from rich.text import Text

from mlxchat.report.description import RunDescription, SettingRow
from mlxchat.report.differences import Comparison, differing_settings
from mlxchat.report.moves import RunRemoval
from mlxchat.report.runs import ModelFacts, RunSummary
from mlxchat.ui.monitor import COLORS, ending_in_words
from mlxchat.ui.output import PIPE_WIDTH, LiteralConsole, console_for
from mlxchat.ui.text import amount, as_options, duration, harmless, in_one_line, wrapped

UNKNOWN = "–"
STAGE_NAMES = {  # short: the commands
    "pretraining": "train",
    "mid-training": "mid",
    "fine-tuning": "sft",
    "reinforcement learning": "rl",
}
WHEN = "%d %b %Y, %H:%M"
_GAP = 2
LABEL = 16  # columns of the names in a description


def show_runs(runs: Sequence[RunSummary], now: float | None = None) -> None:
    """Print a table of runs, or some lines for each where the terminal is too narrow."""
    now = time.time() if now is None else now
    console = console_for(sys.stdout)
    headings = ["run", "stage", "model", "steps", "bits/byte", "time", "size", "when", "state"]
    rows = [_cells(run, now) for run in runs]
    numeric = {3, 4, 5, 6}
    if not _print_grid(console, headings, rows, numeric, [_color(run) for run in runs]):
        for run, row in zip(runs, rows, strict=True):
            _print_entry(console, run, row)
    total = sum(run.bytes for run in runs)
    _line(console, Text(f"{amount(len(runs), 'runs')}, {amount(total, 'bytes')}", "dim"))


def _cells(run: RunSummary, now: float) -> list[str]:
    return [
        in_one_line(run.name),
        STAGE_NAMES.get(run.stage or "", UNKNOWN) if run.state else UNKNOWN,
        model_in_brief(run.model),
        steps_in_brief(run),
        measured_in_brief(run),
        UNKNOWN if run.seconds is None else duration(run.seconds),
        amount(run.bytes, "bytes"),
        UNKNOWN if run.when is None else _when(run.when, now),
        run.state or "model",
    ]


def _when(when: float, now: float) -> str:
    """Return how long ago something was: ``5m ago``, ``3h ago`` or, after a week, the date."""
    seconds = max(0.0, now - when)
    if seconds < 60:
        return "now"
    if seconds < 3600:
        return f"{int(seconds // 60)}m ago"
    if seconds < 2 * 86_400:
        return f"{int(seconds // 3600)}h ago"
    if seconds < 7 * 86_400:
        return f"{int(seconds // 86_400)}d ago"
    return f"{datetime.fromtimestamp(when):%d %b %y}"


def _color(run: RunSummary) -> str:
    return COLORS[run.state] if run.state else ""


def model_in_brief(model: ModelFacts) -> str:
    """Return a model in a few words: ``d12, 186M``, ``d12, 4 bits`` or ``adapter on d12``."""
    if model.base is not None:
        return f"on {in_one_line(model.base)}"
    depth = UNKNOWN if model.layers is None else f"d{model.layers}"
    if model.bits is not None:
        return f"{depth}, {model.bits} bits"
    if model.parameters is not None:
        return f"{depth}, {_in_short(model.parameters)}"
    return depth


def _in_short(count: float) -> str:
    """Return a large number in three digits: ``495k``, ``186M`` or ``1.9B``."""
    for name, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return (
                f"{count / factor:.1f}{name}"
                if count < 10 * factor
                else f"{count / factor:.0f}{name}"
            )
    return f"{count:.0f}"


def steps_in_brief(run: RunSummary) -> str:
    """Return the steps of a finished run, or how many of them are done: ``40/60``."""
    if run.step is None:
        return f"{run.saved_steps[-1]:,}" if run.saved_steps else UNKNOWN
    if run.total_steps in (None, run.step):
        return f"{run.step:,}"
    return f"{run.step:,}/{run.total_steps:,}"


def measured_in_brief(run: RunSummary) -> str:
    """Return the last bits per byte or, of reinforcement learning, pass@1."""
    if run.pass_1 is not None:
        return f"{run.pass_1:.1%} right"
    return UNKNOWN if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}"


def _print_entry(console: LiteralConsole, run: RunSummary, row: Sequence[str]) -> None:
    """Print a run as its name, and what is known of it in lines that fit."""
    name, stage, model, steps, bits, seconds, size, when, state = row
    _line(console, Text.assemble((name, "bold"), "  ", (state, _color(run))))
    facts = [stage, model, amount_of(steps), bits_with_unit(run, bits), seconds, size, when]
    text = " · ".join(fact for fact in facts if fact and fact != UNKNOWN)
    for line in _flowed(text.split(" · "), console.width - _GAP):
        _line(console, Text(" " * _GAP + line))


def amount_of(steps: str) -> str:
    """Return steps in brief with their unit."""
    return steps if steps == UNKNOWN else f"{steps} step{'' if steps == '1' else 's'}"


def bits_with_unit(run: RunSummary, brief: str) -> str:
    """Return a measurement in brief with its unit."""
    return f"{brief} bits/byte" if run.pass_1 is None and brief != UNKNOWN else brief


def _flowed(parts: Iterable[str], width: int) -> list[str]:
    """Return parts joined by dots on lines of at most ``width`` columns; no part is split."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _print_grid(
    console: LiteralConsole,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: set[int],
    colors: Sequence[str] = (),
) -> bool:
    """Print a table unless the terminal is too narrow for it; returns whether it was printed."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    room = console.width if console.is_terminal else PIPE_WIDTH
    if sum(widths) + _GAP * (len(widths) - 1) > room:
        return False
    for number, row in enumerate((headings, *rows)):
        line = Text()
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            style = "bold" if number == 0 else ""
            if colors and number and index == len(row) - 1:
                style = colors[number - 1]
            line.append(" " * _GAP if index else "")
            line.append(f"{cell:>{width}}" if index in numeric else f"{cell:<{width}}", style)
        line.rstrip()
        _line(console, line)
    return True


def _line(console: LiteralConsole, text: Text) -> None:
    console.print(text, soft_wrap=True)


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
    title = Text.assemble((in_one_line(summary.name), "bold"), "  ", (state, _color(summary)))
    _line(console, title)
    if summary.state == "unreadable":
        _paragraph(console, f"{summary.fault} This says nothing about its saved steps.")
    elif summary.state:
        _paragraph(console, _ending(summary, now))
    if run.fault:
        _paragraph(console, run.fault)
    _facts(console, "", _overview(run))
    _settings(console, run.rows, everything)
    _facts(console, "Saved steps", _steps(run))
    if run.samples:
        _heading(console, f"Samples after step {run.samples[0].step:,}")
        for sample in run.samples:
            said = Text.assemble(
                (in_one_line(sample.prompt), "dim"), " → ", in_one_line(sample.text)
            )
            console.print(said)
    if run.command:
        _heading(console, "The command that repeats it")
        _line(console, Text(run.command))


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
    add("pass@1", _right_in_words(summary))
    if summary.core:
        add("CORE", f"{summary.core[-1][1]:.4f} ± {summary.core[-1][2]:.4f}")
    add("time", None if summary.seconds is None else f"{duration(summary.seconds)} of training")
    if summary.tokens and summary.seconds:
        add("speed", f"{summary.tokens / summary.seconds:,.0f} tokens/s")
    add("peak memory", summary.peak_memory and amount(summary.peak_memory, "bytes"))
    for number, start in enumerate(run.starts):
        began = "resumed" if number else "started"
        at = f" at step {start.step:,}" if start.step else ""
        add(began, f"{datetime.fromtimestamp(start.time):{WHEN}}{at}, {start.where}")
    add("size", amount(summary.bytes, "bytes"))
    add("folder", summary.places.folder)
    add("log", summary.places.log)
    add("evaluations", len(summary.places.evaluations) or None)
    add("later runs", ", ".join(run.continued))
    add("saved by", run.versions)
    return facts


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


def _right_in_words(run: RunSummary) -> str:
    if run.pass_1 is None:
        return ""
    return f"{run.pass_1:.1%} of held-out questions after step {run.scores[-1][0]:,}"


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
    """Print names with their values beside them, wrapped, or below them where it is narrow."""
    if not facts:
        return
    _heading(console, title)
    width = console.width if console.is_terminal else PIPE_WIDTH
    label = max(len(name) for name, _ in facts) + _GAP
    for name, value in facts:
        shown = [harmless(line.plain) for line in wrapped(value, max(10, width - label))] or [""]
        for number, line in enumerate(shown):
            beside = f"{name if number == 0 else '':<{label}}"
            _line(console, Text.assemble((beside, "dim"), line))


def _heading(console: LiteralConsole, title: str) -> None:
    console.print()
    if title:
        _line(console, Text(title, "bold cyan"))


def _paragraph(console: LiteralConsole, text: str) -> None:
    console.print(Text(in_one_line(as_options(text))))


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
    if not _print_grid(console, ["", *names], [*rows, *empty, *settings], set()):
        _print_below(console, names, [*rows, *settings])
    if any(row and row.origin == "derived" for _, values in differing for row in values):
        _line(console, Text("* derived", "dim"))
    if not settings:
        console.print()
        _line(console, Text("Their settings are the same."))
    console.print()
    better = f"Better: {found.best}, " if found.best else ""
    console.print(Text(in_one_line(f"{better}{found.reason}"), "bold" if found.best else ""))


def _measurements(runs: Sequence[RunDescription]) -> list[list[str]]:
    of = [run.summary for run in runs]

    def row(title: str, shown: Callable[[RunSummary], str | None]) -> list[str]:
        return [title, *(shown(run) or UNKNOWN for run in of)]

    rows = [
        row("state", lambda run: run.state or "model"),
        row("stage", lambda run: STAGE_NAMES.get(run.stage or "") if run.state else None),
        row("model", lambda run: model_in_brief(run.model)),
        row("bits/byte", lambda run: _formatted(run.bits_per_byte, ".4f")),
        row("best", lambda run: _formatted(run.best and run.best[1], ".4f")),
        row("pass@1", lambda run: _formatted(run.pass_1, ".1%")),
        row("steps", steps_in_brief),
        row("tokens", lambda run: None if run.tokens is None else _in_short(run.tokens)),
        row("FLOPs", lambda run: _formatted(run.flops, ".3g")),
        row("time", lambda run: None if run.seconds is None else duration(run.seconds)),
        row("size", lambda run: amount(run.bytes, "bytes")),
    ]
    if rows[3][1:] == rows[4][1:]:
        del rows[4]
    return [row for row in rows if any(cell != UNKNOWN for cell in row[1:])]


def _formatted(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _marked(row: SettingRow) -> str:
    return f"{row.value} *" if row.origin == "derived" else row.value


def _print_below(
    console: LiteralConsole, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print for each fact the value of each run below its name."""
    label = max(map(len, names)) + _GAP
    for title, *values in rows:
        _line(console, Text(title, "bold"))
        for name, value in zip(names, values, strict=True):
            shown = wrapped(value, max(10, console.width - label - _GAP)) or [Text()]
            for number, line in enumerate(shown):
                beside = f"{name if number == 0 else '':<{label}}"
                _line(console, Text.assemble("  ", (beside, "dim"), line))


# ==== Removing ====


def removal_in_words(removal: RunRemoval) -> list[str]:
    """Return what removing a run would remove, and what goes on without it."""
    run = removal.run
    places, parts = run.places, []
    if run.saved_steps:
        parts.append(amount(len(run.saved_steps), "saved steps"))
    parts += ["its log"] if places.log else []
    if places.evaluations:
        parts.append(amount(len(places.evaluations), "files of evaluations"))
    parts += (
        [f"other files ({', '.join(map(in_one_line, removal.others))})"] if removal.others else []
    )
    held = ", ".join(parts) or "an empty folder"
    lines = [f"{in_one_line(run.name)}: {held}; {amount(removal.use.bytes, 'bytes')}."]
    if removal.use.shared:
        shared = amount(removal.use.shared, "bytes")
        lines.append(f"  {shared} of that stay on the disk, since copies share them.")
    if removal.continued:
        names = ", ".join(map(in_one_line, removal.continued))
        lines.append(f"  Began with its model, and have weights of their own: {names}.")
    return lines
