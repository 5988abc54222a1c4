"""The output of `mlxchat runs list` and `runs remove`, and runs in few words.

Where a terminal is too narrow for a table, each run is a few short lines.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from mlxchat.counts import duration
from mlxchat.report.runs import ModelFacts, RunSummary
from mlxchat.ui.monitor import COLORS
from mlxchat.ui.output import PIPE_WIDTH, LiteralConsole, console_for
from mlxchat.ui.text import amount, in_one_line, staying_in_words, with_total

if TYPE_CHECKING:
    from mlxchat.report.moves import RunRemoval

UNKNOWN = "–"
GRID_GAP = 2  # blanks between columns


def show_runs(runs: Sequence[RunSummary], total: int, now: float | None = None) -> None:
    """Print a table of runs, or some lines for each where the terminal is too narrow.

    Args:
        runs: the runs.
        total: the bytes of all of them; what several share counts once.
        now: seconds since the epoch.
    """
    now = time.time() if now is None else now
    console = console_for(sys.stdout)
    headings = ["run", "stage", "model", "steps", "bits/byte", "time", "size", "when", "state"]
    rows = [_cells(run, now) for run in runs]
    numeric = {3, 4, 5, 6}
    if not print_grid(console, headings, rows, numeric, [state_color(run) for run in runs]):
        for run, row in zip(runs, rows, strict=True):
            _print_entry(console, run, row)
    said = with_total(amount(len(runs), "runs"), total, [run.bytes for run in runs])
    console.print(Text(said, "dim"))


def _cells(run: RunSummary, now: float) -> list[str]:
    return [
        in_one_line(run.name),
        run.command or UNKNOWN,
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


def state_color(run: RunSummary) -> str:
    """Return the color that a run's state is printed in."""
    return COLORS[run.state] if run.state else ""


def model_in_brief(model: ModelFacts) -> str:
    """Return a model in a few words: ``d12, 186M``, ``d12, 4 bits`` or ``adapter on d12``."""
    if model.base is not None:
        return f"on {in_one_line(model.base)}"
    depth = UNKNOWN if model.layers is None else f"d{model.layers}"
    if model.bits is not None:
        return f"{depth}, {model.bits} bits"
    if model.parameters is not None:
        return f"{depth}, {in_short(model.parameters)}"
    return depth


def in_short(count: float) -> str:
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
    print_line(console, Text.assemble((name, "bold"), "  ", (state, state_color(run))))
    facts = [stage, model, amount_of(steps), bits_with_unit(run, bits), seconds, size, when]
    text = " · ".join(fact for fact in facts if fact and fact != UNKNOWN)
    for line in _flowed(text.split(" · "), console.width - GRID_GAP):
        print_line(console, Text(" " * GRID_GAP + line))


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


def print_grid(
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
    if sum(widths) + GRID_GAP * (len(widths) - 1) > room:
        return False
    for number, row in enumerate((headings, *rows)):
        line = Text()
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            style = "bold" if number == 0 else ""
            if colors and number and index == len(row) - 1:
                style = colors[number - 1]
            line.append(" " * GRID_GAP if index else "")
            line.append(f"{cell:>{width}}" if index in numeric else f"{cell:<{width}}", style)
        line.rstrip()
        print_line(console, line)
    return True


def print_line(console: LiteralConsole, text: Text) -> None:
    """Print a line that must not be wrapped."""
    console.print(text, soft_wrap=True)


def removal_in_words(removal: "RunRemoval") -> list[str]:
    """Return what removing a run would remove, and what goes on without it."""
    run = removal.run
    places, parts = run.places, []
    if run.saved_steps:
        parts.append(amount(len(run.saved_steps), "checkpoints"))
    parts += ["its log"] if places.log else []
    if places.evaluations:
        parts.append(amount(len(places.evaluations), "files of evaluations"))
    parts += (
        [f"other files ({', '.join(map(in_one_line, removal.others))})"] if removal.others else []
    )
    held = ", ".join(parts) or "an empty folder"
    lines = [f"{in_one_line(run.name)}: {held}; {amount(removal.use.bytes, 'bytes')}."]
    lines += [f"  {line}" for line in staying_in_words(removal.use)]
    if removal.continued:
        names = ", ".join(map(in_one_line, removal.continued))
        lines.append(f"  Began with its model, and have weights of their own: {names}.")
    if removal.adapters:
        names = ", ".join(map(in_one_line, removal.adapters))
        lines.append(f"  Adapters on its model, which they find in another run as well: {names}.")
    return lines
