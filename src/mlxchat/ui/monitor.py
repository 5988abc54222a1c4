"""Draws the screen of `mlxchat monitor`: a home and its machine, redrawn at intervals.

`picture` is a pure function from a `Snapshot` and a size to what rich draws. Runs that are
training, or ended recently, get a panel each while there is room; all others get a line in a table.
Every line is laid out to fit: only a command or a name too long for its column is cut. `watch`
shows pictures on the whole terminal until a key quits.
"""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from mlxchat.counts import duration, part_of_size, round_size, score_within, share_within
from mlxchat.monitor.runs import Snapshot, State, WatchedRun
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Timer
from mlxchat.telemetry.events import MACHINE_FULL
from mlxchat.ui.dashboard import GAP, INTERVAL_WIDTH, progress_curve, shown_loss
from mlxchat.ui.text import (
    Cell,
    TextPanel,
    amount,
    as_options,
    column,
    flow,
    grid,
    in_one_line,
    join,
    labelled_bar,
    unwrapped,
    wrapped,
)

MOST_ROWS, LEAST_ROWS = 12, 6  # lines of numbers and curve in a panel
LEAST_CURVE = 20  # characters
LEAST_VALUE = 20  # characters, so that the curve stays in place while numbers get longer
SHOWN_STEPS = 3  # checkpoints that are listed
WITH_BITS = 72  # width from which the table shows bits per byte
COLORS = {
    "running": "green",
    "silent": "yellow",
    "finished": "cyan",
    "interrupted": "cyan",
    "failed": "red",
    "died": "red",
    "unreadable": "red",
}
PANEL_SECONDS = 60.0  # how long a run keeps its panel after it ended
TROUBLE_SECONDS = 3600.0  # the same for one that failed, died or fell silent
WITH_ALL_SIZES = 56  # width from which the processes' table shows all memory sizes
LEAST_EARLIER = 3  # lines that panels leave for the table of earlier runs
PRESSURES = {"normal": "bold green", "warning": "bold yellow", "critical": "bold red"}


def picture(
    snapshot: Snapshot, *, width: int = 80, height: int | None = None, footer: str = ""
) -> Group:
    """Return the picture of a home and its machine.

    Args:
        width: characters in every line.
        height: the most lines, unless the minimum takes more; None for no limit.
        footer: a last line.
    """
    inner, last = width - 4, [unwrapped(Text(footer, style="dim"))] if footer else []
    top, bottom = _machine(snapshot, inner), _processes(snapshot, inner)
    room = None
    if height is not None:
        room = height - top.height - sum(section.height for section in bottom) - len(last)
    sections = [top, *_runs(snapshot, inner, room), *bottom]
    return Group(*(section.panel(width) for section in sections), *last)


def _machine(snapshot: Snapshot, width: int) -> TextPanel:
    """Return the panel of memory, memory pressure and disk."""
    machine, disk = snapshot.machine, snapshot.disk
    used, total = machine.memory_used, machine.memory_total
    label = f"memory {part_of_size(used, total)}"
    facts = []
    if machine.pressure:
        facts.append(Cell("pressure", machine.pressure, PRESSURES[machine.pressure]))
    swap = part_of_size(machine.swap_used, machine.swap_total)
    facts.append(Cell("swap", swap if machine.swap_total else "none"))
    facts.append(Cell("free on disk", amount(disk.free, "bytes")))
    parts = ("shards", "checkpoints", "tokenizer", "logs")
    lines = [
        labelled_bar(label, used, total, width, "yellow" if machine.full else "green"),
        *flow(facts, width, GAP),
        *flow([Cell(part, amount(getattr(disk, part), "bytes")) for part in parts], width, GAP),
    ]
    if machine.full:
        why = (
            f"Memory is {used / total:.0%} full. Above {MACHINE_FULL:.0%}, a machine starts to swap"
        )
        if machine.mac and machine.pressure:
            why = f"Memory pressure is {machine.pressure}: macOS is compressing memory and swapping"
        warning = (
            f"{why}, which slows everything down. Close other programs, or stop a run with "
            "Ctrl-C: it saves its progress, and repeating its command resumes it later."
        )
        lines += wrapped(warning, width, "bold yellow")
    return TextPanel(f"{machine.host} · {snapshot.home}", lines)


def _runs(snapshot: Snapshot, width: int, room: int | None) -> list[TextPanel]:
    """Return panels of current and recent runs and a table of the rest, or a table of all."""
    if not snapshot.runs:
        text = (
            "No runs yet. Start one in another terminal with mlxchat quickstart or mlxchat train, "
            "and it will appear here."
        )
        return [TextPanel("runs", wrapped(text, width))]
    now = snapshot.time
    recent = [run for run in snapshot.runs if _recent(run, now)]
    earlier = [run for run in snapshot.runs if not _recent(run, now)]
    earlier.sort(key=lambda run: run.last_seen or 0.0, reverse=True)
    if not earlier:
        sections = run_panels(recent, now, width, room)
        return [runs_table(recent, now, width, _below(room))] if sections is None else sections
    least = 3 + min(len(earlier), LEAST_EARLIER)
    sections = run_panels(recent, now, width, None if room is None else room - least)
    if sections is None:
        return [runs_table([*recent, *earlier], now, width, _below(room))]
    left = None if room is None else room - sum(section.height for section in sections)
    return [*sections, runs_table(earlier, now, width, _below(left))]


def _below(room: int | None) -> int | None:
    """Return how many lines a table has below its headings."""
    return None if room is None else room - 3


def _recent(run: WatchedRun, now: float) -> bool:
    ended = run.state in ("finished", "interrupted")
    since = now - (PANEL_SECONDS if ended else TROUBLE_SECONDS)
    return run.state in ("running", "unreadable") or (run.last_seen or 0.0) > since


def _processes(snapshot: Snapshot, width: int) -> list[TextPanel]:
    """Return the table of processes and their memory, of other hosts too, if there are any."""
    running = {
        (run.status.process.host, run.status.process.pid): run
        for run in snapshot.runs
        if run.status and run.state in ("running", "silent") and _recent(run, snapshot.time)
    }
    rows = []
    for program in snapshot.processes:
        run = running.pop((snapshot.machine.host, program.pid), None)
        name = in_one_line(program.command if run is None else f"train {run.tag}")
        rows.append(_row(program.pid, name, run, round_size(program.resident)))
    for (host, pid), run in running.items():
        rows.append(_row(pid, in_one_line(f"train {run.tag} on {host}"), run, "–"))
    headings: tuple[str, ...]
    headings = ("pid", "process", "MLX active", "MLX peak", "MLX cache", "resident")
    if width < WITH_ALL_SIZES:
        rows = [(*row[:2], row[3], row[5]) for row in rows]
        headings = (*headings[:2], headings[3], headings[5])
    return [TextPanel("processes", grid(headings, rows, width, texts=2))] if rows else []


def _row(pid: int, name: str, run: WatchedRun | None, resident: str) -> tuple[str, ...]:
    if run is None or run.status is None:
        return str(pid), name, "–", "–", "–", resident
    memory = run.status.memory
    sizes = (round_size(size) for size in (memory.active, memory.peak, memory.cache))
    return str(pid), name, *sizes, resident


def run_panels(
    runs: Sequence[WatchedRun], now: float, width: int, room: int | None
) -> list[TextPanel] | None:
    """Return a panel for each run, as large as there is room for, or None if there is too little.

    If not all can have a curve, running ones come first.

    Args:
        now: seconds since the epoch.
        width: characters within a panel.
        room: lines for all of them; None for no limit.
    """
    if room is None:
        return [run_panel(run, now, width, LEAST_ROWS) for run in runs]
    for rows in range(MOST_ROWS, LEAST_ROWS - 1, -1):
        sections = [run_panel(run, now, width, rows) for run in runs]
        if sum(section.height for section in sections) <= room:
            return sections
    sections = [run_panel(run, now, width, 0) for run in runs]
    spare = room - sum(section.height for section in sections)
    if spare < 0:
        return None
    for index in sorted(range(len(runs)), key=lambda index: runs[index].state != "running"):
        larger = run_panel(runs[index], now, width, LEAST_ROWS)
        if larger.height - sections[index].height <= spare:
            spare -= larger.height - sections[index].height
            sections[index] = larger
    return sections


def run_panel(run: WatchedRun, now: float, width: int, rows: int) -> TextPanel:
    """Return the panel of a run: progress, a notice, and the numbers beside the loss curve.

    Args:
        rows: lines below the progress bar, if the numbers fit; with 0 the curve is left out and the
            numbers follow each other on as few lines as possible.
    """
    color = COLORS[run.state]
    if run.state == "unreadable":
        return TextPanel(_title(run), wrapped(_notice(run, now), width, color), color)
    label = f"step {run.meter.step:,}/{run.meter.total_steps:,}"
    lines = [labelled_bar(label, run.meter.step, run.meter.total_steps, width, color)]
    notice = wrapped(_notice(run, now), width, color)
    cells = _numbers(run, now, has_room=width >= INTERVAL_WIDTH)
    if rows == 0:
        return TextPanel(_title(run), [*lines, *notice, *flow(cells, width, GAP)], color)
    numbers = column(cells, LEAST_VALUE)
    spare = width - len(numbers[0]) - 2 * GAP
    height = max(len(numbers), rows - len(notice))
    drawn = progress_curve(run.meter, spare, height) if spare >= LEAST_CURVE else []
    body = join([numbers, drawn], 2 * GAP) if drawn else numbers
    return TextPanel(_title(run), [*lines, *notice, *body], color)


def _title(run: WatchedRun) -> str:
    if run.status is None or run.state not in ("running", "silent"):
        return f"{run.tag} · {run.state}"
    process = run.status.process
    doing = run.status.activity if run.state == "running" else run.state
    return f"{run.tag} · {doing} · process {process.pid} on {process.host}"


def ago(time: float, now: float) -> str:
    """Return how long ago something happened: ``3m 05s ago``."""
    return f"{duration(max(0.0, now - time))} ago"


def _numbers(run: WatchedRun, now: float, has_room: bool) -> list[Cell]:
    """Return the figures of a run, scores with their intervals if there is room."""
    meter = run.meter
    if meter.reward is None:
        cells = [Cell("loss", shown_loss(meter, run.latest))]
    else:
        cells = [Cell("reward", f"{meter.reward:.3f}")]
    if meter.scores:
        (step, right), judged = meter.scores[-1], meter.judged
        known = judged is not None and judged.step == step  # not of what only a checkpoint tells
        ends = (judged.pass_1_low, judged.pass_1_high) if judged and known and has_room else None
        cells.append(Cell("pass@1", share_within(right, ends)))
    if meter.bits_per_byte is not None:
        at = f"{meter.bits_per_byte:.4f}, step {meter.evaluations[-1][0]:,}"
        cells.append(Cell("bits per byte", at))
    if meter.best is not None and meter.best[0] != meter.evaluations[-1][0]:
        cells.append(Cell("best", f"{meter.best[1]:.4f}, step {meter.best[0]:,}"))
    if meter.core:
        _, core, error, _ = meter.core[-1]
        cells.append(Cell("CORE", score_within(core, error) if has_room else f"{core:.4f}"))
    if run.state == "running":
        rate, left = meter.tokens_per_second, run.seconds_left(now)
        cells.append(Cell("tokens/s", "–" if rate is None else f"{rate:,.0f}"))
        ahead = "" if left is None else f", {duration(left)} left"
        cells.append(Cell("time", duration(meter.elapsed) + ahead))
    else:
        cells.append(Cell("time", duration(meter.elapsed)))
    steps = ", ".join(f"{step:,}" for step in run.saved_steps[-SHOWN_STEPS:])
    more = "… " if len(run.saved_steps) > SHOWN_STEPS else ""
    cells.append(Cell("checkpoints", f"{more}{steps}" or "none"))
    if run.saved is not None:
        cells.append(Cell("last saved", ago(run.saved, now)))
    return cells


def _notice(run: WatchedRun, now: float) -> str:
    """Return a sentence about a run that has ended or is not running as it should."""
    if run.state == "unreadable":
        return f"It cannot be watched: {run.fault} This says nothing about its checkpoints."
    failure = run.status.failure if run.status else None
    return ending_in_words(run.state, run.last_seen, run.saved_steps, failure, now)


def ending_in_words(
    state: State,
    last_seen: float | None,
    saved_steps: Sequence[int],
    failure: str | None,
    now: float,
) -> str:
    """Return a sentence on how a run ended and what its command does now; empty while it runs.

    Args:
        state: the run's state, any but unreadable.
        last_seen: the time of its last sign of life; None if there was none.
        saved_steps: ascending.
        failure: the error message, if it failed.
        now: seconds since the epoch.
    """
    when = "its start"
    if last_seen is not None:
        when = f"{datetime.fromtimestamp(last_seen):%d %b, %H:%M:%S}, {ago(last_seen, now)}"
    resume = "nothing was saved, so repeating its command starts from scratch"
    if saved_steps:
        resume = f"repeating its command resumes from step {saved_steps[-1]:,}"
    match state:
        case "running":
            return ""
        case "finished":
            return f"Finished on {when}."
        case "interrupted":
            return f"Stopped on {when}; {resume}."
        case "failed":
            return f"Failed on {when}: {as_options(failure or '')} Once that is fixed, {resume}."
        case "died":
            return f"Its process was killed or crashed. Last seen on {when}; {resume}."
        case _:
            return (
                f"No sign of life since {when}: the process is asleep, stuck or dead. "
                f"If it is dead, {resume}."
            )


def runs_table(runs: Sequence[WatchedRun], now: float, width: int, room: int | None) -> TextPanel:
    """Return a table with a line for each run, as many as there is room for.

    Args:
        now: seconds since the epoch.
        width: characters within the panel.
        room: lines below the headings; None for no limit.
    """
    shown = runs if room is None or len(runs) <= room else runs[: max(0, room - 1)]
    rows: list[tuple[str, ...]] = []
    for run in shown:
        meter, left = run.meter, run.seconds_left(now)
        step = f"{meter.step:,}/{meter.total_steps:,}"
        bits = "–" if meter.bits_per_byte is None else f"{meter.bits_per_byte:.4f}"
        time = "–" if run.last_seen is None else ago(run.last_seen, now)
        if run.state == "running":
            time = "–" if left is None else f"{duration(left)} left"
        rows.append(
            (run.state, in_one_line(run.tag), step, shown_loss(meter, run.latest), bits, time)
        )
    headings: tuple[str, ...] = ("state", "run", "step", "loss", "bits/byte", "time")
    if width < WITH_BITS:
        rows, headings = [row[:4] + row[5:] for row in rows], headings[:4] + headings[5:]
    lines = grid(headings, rows, width, texts=2)
    if len(shown) < len(runs):
        lines.append(Text(f"and {len(runs) - len(shown):,} more", style="dim"))
    living = any(run.state == "running" for run in runs)
    return TextPanel("runs" if living else "earlier runs", lines)


RESIZE_SECONDS = 0.25  # the longest delay until the picture fits a resized terminal
Seen = TypeVar("Seen")

QUIT_KEYS = (b"q", b"Q", b"\x04")  # the last is Ctrl-D


def watch(
    console: Console,
    look: Callable[[], Seen],
    draw: Callable[[Seen, int, int], RenderableType],
    interval: float,
    pressed: Callable[[float], bool],
    timer: Timer = SYSTEM_CLOCK.seconds,
) -> None:
    """Show pictures on the whole terminal, and restore it afterwards.

    Args:
        look: returns what to show; called every ``interval`` seconds.
        draw: makes a picture of it, given the console's columns and lines.
        pressed: waits at most that many seconds, and returns whether to quit.
        timer: returns seconds since any origin.
    """
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        ended = False
        while not ended:
            seen, looked = look(), timer()
            size = None
            while not ended and timer() - looked < interval:
                if console.size != size:
                    size = console.size
                    live.update(draw(seen, size.width, size.height), refresh=True)
                ended = pressed(max(0.0, min(RESIZE_SECONDS, looked + interval - timer())))


@contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits for a key that quits, while keys are read singly and not shown.

    Without a terminal to read from, it only waits.
    """
    if not sys.stdin.isatty():
        yield _asleep
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: _key_within(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _asleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _key_within(descriptor: int, seconds: float) -> bool:
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return bool(ready) and os.read(descriptor, 1) in (
        *QUIT_KEYS,
        b"",
    )  # empty: no terminal
