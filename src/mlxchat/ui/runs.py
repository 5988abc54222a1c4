"""Runs as `mlxchat monitor` shows them: a panel each, or a line each in a table."""

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from mlxchat.monitor.runs import Run
from mlxchat.ui.bars import duration, labelled_bar
from mlxchat.ui.cells import Cell, Section, column, flow, grid, join, wrapped
from mlxchat.ui.curve import labelled_curve
from mlxchat.ui.dashboard import GAP, shown_loss

MOST_ROWS, LEAST_ROWS = 12, 6  # lines of numbers and curve in a panel
LEAST_CURVE = 20  # characters
LEAST_VALUE = 20  # characters, so that the curve keeps its place while numbers get longer
SHOWN_STEPS = 3  # of those that are saved
WITH_BITS = 72  # characters from which the table has bits per byte
COLORS = {
    "running": "green",
    "silent": "yellow",
    "finished": "cyan",
    "interrupted": "cyan",
    "failed": "red",
    "died": "red",
}


def panels(runs: Sequence[Run], now: float, width: int, room: int | None) -> list[Section] | None:
    """A panel for each run, as large as there is room for; None where there is not enough.

    Where not all can have a curve, running ones come first.

    Args:
        now: seconds since the epoch.
        width: characters within a panel.
        room: lines for all of them; None for as many as it takes.
    """
    if room is None:
        return [panel(run, now, width, LEAST_ROWS) for run in runs]
    for rows in range(MOST_ROWS, LEAST_ROWS - 1, -1):
        sections = [panel(run, now, width, rows) for run in runs]
        if sum(section.height for section in sections) <= room:
            return sections
    sections = [panel(run, now, width, 0) for run in runs]
    spare = room - sum(section.height for section in sections)
    if spare < 0:
        return None
    for index in sorted(range(len(runs)), key=lambda index: runs[index].state != "running"):
        larger = panel(runs[index], now, width, LEAST_ROWS)
        if larger.height - sections[index].height <= spare:
            spare -= larger.height - sections[index].height
            sections[index] = larger
    return sections


def panel(run: Run, now: float, width: int, rows: int) -> Section:
    """A run: its progress, what there is to say, and its numbers with the curve beside them.

    Args:
        rows: lines below the progress, as far as the numbers fit on them; with none the curve is
            left out, and the numbers follow each other.
    """
    color = COLORS[run.state]
    label = f"step {run.meter.step:,}/{run.meter.total_steps:,}"
    lines = [labelled_bar(label, run.meter.step, run.meter.total_steps, width, color)]
    notice = wrapped(_notice(run, now), width, color)
    cells = _numbers(run, now)
    if rows == 0:
        return Section(_title(run), [*lines, *notice, *flow(cells, width, GAP)], color)
    numbers = column(cells, LEAST_VALUE)
    spare = width - len(numbers[0]) - 2 * GAP
    height = max(len(numbers), rows - len(notice))
    drawn = labelled_curve(run.meter.losses, spare, height) if spare >= LEAST_CURVE else []
    body = join([numbers, drawn], 2 * GAP) if drawn else numbers
    return Section(_title(run), [*lines, *notice, *body], color)


def _title(run: Run) -> str:
    if run.status is None or run.state not in ("running", "silent"):
        return f"{run.tag} · {run.state}"
    process = run.status.process
    doing = run.status.activity if run.state == "running" else run.state
    return f"{run.tag} · {doing} · process {process.pid} on {process.host}"


def _ago(time: float, now: float) -> str:
    return f"{duration(max(0.0, now - time))} ago"


def _numbers(run: Run, now: float) -> list[Cell]:
    meter = run.meter
    cells = [Cell("loss", shown_loss(meter, run.latest))]
    if meter.bits_per_byte is not None:
        cells.append(Cell("bits per byte", f"{meter.bits_per_byte:.4f}"))
    if run.state == "running":
        rate, left = meter.tokens_per_second, run.seconds_left(now)
        cells.append(Cell("tokens/s", "–" if rate is None else f"{rate:,.0f}"))
        ahead = "" if left is None else f", {duration(left)} left"
        cells.append(Cell("time", duration(meter.elapsed) + ahead))
    else:
        cells.append(Cell("time", duration(meter.elapsed)))
    steps = ", ".join(f"{step:,}" for step in run.saved_steps[-SHOWN_STEPS:])
    more = "… " if len(run.saved_steps) > SHOWN_STEPS else ""
    cells.append(Cell("saved steps", f"{more}{steps}" or "none"))
    if run.saved is not None:
        cells.append(Cell("last saved", _ago(run.saved, now)))
    return cells


def _notice(run: Run, now: float) -> str:
    """What there is to say of a run that has ended or does not go on as it should."""
    if run.state == "running":
        return ""
    when = "the beginning"
    if run.heard is not None:
        when = f"{datetime.fromtimestamp(run.heard):%d %b, %H:%M:%S}, {_ago(run.heard, now)}"
    resume = "nothing was saved, so the same command begins anew"
    if run.saved_steps:
        resume = f"the same command goes on from step {run.saved_steps[-1]:,}"
    match run.state:
        case "finished":
            return f"Finished on {when}."
        case "interrupted":
            return f"Stopped on {when}; {resume}."
        case "failed":
            problem = (run.status.failure if run.status else None) or ""
            return f"Failed on {when}: {problem} When that is mended, {resume}."
        case "died":
            return f"Its process was killed or crashed. Last heard of on {when}; {resume}."
        case _:
            return f"Silent since {when}: asleep, stuck or dead. If dead, {resume}."


def table(runs: Sequence[Run], now: float, width: int, room: int | None) -> Section:
    """A line for each run, as many as there is room for.

    Args:
        now: seconds since the epoch.
        width: characters within the panel.
        room: lines below the headings; None for as many as it takes.
    """
    shown = runs if room is None or len(runs) <= room else runs[: max(0, room - 1)]
    rows: list[tuple[str, ...]] = []
    for run in shown:
        meter, left = run.meter, run.seconds_left(now)
        step = f"{meter.step:,}/{meter.total_steps:,}"
        bits = "–" if meter.bits_per_byte is None else f"{meter.bits_per_byte:.4f}"
        time = "–" if run.heard is None else _ago(run.heard, now)
        if run.state == "running":
            time = "–" if left is None else f"{duration(left)} left"
        rows.append((run.state, run.tag, step, shown_loss(meter, run.latest), bits, time))
    headings: tuple[str, ...] = ("state", "run", "step", "loss", "bits/byte", "time")
    if width < WITH_BITS:
        rows, headings = [row[:4] + row[5:] for row in rows], headings[:4] + headings[5:]
    lines = grid(headings, rows, width, texts=2)
    if len(shown) < len(runs):
        lines.append(Text(f"and {len(runs) - len(shown):,} more", style="dim"))
    living = any(run.state == "running" for run in runs)
    return Section("runs" if living else "earlier runs", lines)
