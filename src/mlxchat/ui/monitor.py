"""What `mlxchat monitor` shows: a pure function from a `Snapshot` and a size to what rich draws.

Runs that go on, or did a little while ago, get a panel each as long as there is room, the others a
line. Every line is laid out here to fit; only a command or a name too long for its column is cut.

Runs as `mlxchat monitor` shows them: a panel each, or a line each in a table.

A screen that is drawn again and again, until q or Ctrl-C.
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

from mlxchat.monitor.runs import Run, Snapshot
from mlxchat.telemetry.events import MACHINE_FULL
from mlxchat.ui.dashboard import GAP, labelled_curve, shown_loss
from mlxchat.ui.text import (
    Cell,
    Section,
    amount,
    as_options,
    column,
    duration,
    flow,
    grid,
    in_one_line,
    join,
    labelled_bar,
    memory_size,
    unwrapped,
    wrapped,
)

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
            return f"Failed on {when}: {as_options(problem)} When that is mended, {resume}."
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


PANEL_SECONDS = 60.0  # so long a run that has ended keeps its panel
TROUBLE_SECONDS = 3600.0  # and one that failed, died or fell silent
WITH_ALL_SIZES = 56  # characters from which processes have all sizes of their memory
LEAST_EARLIER = 3  # lines of the table of earlier runs that panels leave room for
PRESSURES = {"normal": "bold green", "warning": "bold yellow", "critical": "bold red"}


def picture(
    snapshot: Snapshot, *, width: int = 80, height: int | None = None, footer: str = ""
) -> Group:
    """A home and its machine at a glance.

    Args:
        width: characters of every line.
        height: lines at most, as far as the least fits; None for as many as it takes.
        footer: a last line.
    """
    inner, last = width - 4, [unwrapped(Text(footer, style="dim"))] if footer else []
    top, bottom = _machine(snapshot, inner), _processes(snapshot, inner)
    room = None
    if height is not None:
        room = height - top.height - sum(section.height for section in bottom) - len(last)
    sections = [top, *_runs(snapshot, inner, room), *bottom]
    return Group(*(section.panel(width) for section in sections), *last)


def _machine(snapshot: Snapshot, width: int) -> Section:
    """Memory, what presses on it, and the disk."""
    machine, disk = snapshot.machine, snapshot.disk
    used, total = machine.memory_used, machine.memory_total
    label = f"memory {used / 2**30:.1f} of {memory_size(total)}"
    facts = []
    if machine.pressure:
        facts.append(Cell("pressure", machine.pressure, PRESSURES[machine.pressure]))
    swap = f"{machine.swap_used / 2**30:.1f} of {memory_size(machine.swap_total)}"
    facts.append(Cell("swap", swap if machine.swap_total else "none"))
    facts.append(Cell("free on disk", amount(disk.free, "bytes")))
    parts = ("shards", "checkpoints", "tokenizer", "logs")
    lines = [
        labelled_bar(label, used, total, width, "yellow" if machine.full else "green"),
        *flow(facts, width, GAP),
        *flow([Cell(part, amount(getattr(disk, part), "bytes")) for part in parts], width, GAP),
    ]
    if machine.full:
        warning = (
            f"Memory is {used / total:.0%} full: beyond {MACHINE_FULL:.0%} a machine begins to "
            "swap, which slows everything. Close other programs, or end a run with Ctrl-C: it "
            "saves, and the same command goes on later."
        )
        lines += wrapped(warning, width, "bold yellow")
    return Section(f"{machine.host} · {snapshot.home}", lines)


def _runs(snapshot: Snapshot, width: int, room: int | None) -> list[Section]:
    """Panels of what goes on or did of late, then a table of the rest; or a table of all."""
    if not snapshot.runs:
        text = (
            "No run yet. Begin one in another terminal, with mlxchat quickstart or mlxchat train, "
            "and it appears here."
        )
        return [Section("runs", wrapped(text, width))]
    now = snapshot.time
    recent = [run for run in snapshot.runs if _recent(run, now)]
    earlier = [run for run in snapshot.runs if not _recent(run, now)]
    earlier.sort(key=lambda run: run.heard or 0.0, reverse=True)
    if not earlier:
        sections = panels(recent, now, width, room)
        return [table(recent, now, width, _below(room))] if sections is None else sections
    least = 3 + min(len(earlier), LEAST_EARLIER)
    sections = panels(recent, now, width, None if room is None else room - least)
    if sections is None:
        return [table([*recent, *earlier], now, width, _below(room))]
    left = None if room is None else room - sum(section.height for section in sections)
    return [*sections, table(earlier, now, width, _below(left))]


def _below(room: int | None) -> int | None:
    """Lines that a table has below its headings."""
    return None if room is None else room - 3


def _recent(run: Run, now: float) -> bool:
    ended = run.state in ("finished", "interrupted")
    since = now - (PANEL_SECONDS if ended else TROUBLE_SECONDS)
    return run.state == "running" or (run.heard or 0.0) > since


def _processes(snapshot: Snapshot, width: int) -> list[Section]:
    """The processes with their memory, those of other hosts too; nothing where there is none."""
    running = {
        (run.status.process.host, run.status.process.pid): run
        for run in snapshot.runs
        if run.status and run.state in ("running", "silent") and _recent(run, snapshot.time)
    }
    rows = []
    for program in snapshot.programs:
        run = running.pop((snapshot.machine.host, program.pid), None)
        name = in_one_line(program.command) if run is None else f"train {run.tag}"
        rows.append(_row(program.pid, name, run, memory_size(program.resident)))
    for (host, pid), run in running.items():
        rows.append(_row(pid, f"train {run.tag} on {host}", run, "–"))
    headings: tuple[str, ...]
    headings = ("pid", "process", "MLX active", "MLX peak", "MLX cache", "resident")
    if width < WITH_ALL_SIZES:
        rows = [(*row[:2], row[3], row[5]) for row in rows]
        headings = (*headings[:2], headings[3], headings[5])
    return [Section("processes", grid(headings, rows, width, texts=2))] if rows else []


def _row(pid: int, name: str, run: Run | None, resident: str) -> tuple[str, ...]:
    if run is None or run.status is None:
        return str(pid), name, "–", "–", "–", resident
    memory = run.status.memory
    sizes = (memory_size(size) for size in (memory.active, memory.peak, memory.cache))
    return str(pid), name, *sizes, resident


RESIZE_SECONDS = 0.25  # after so long at most, the picture suits a new size of the terminal
Seen = TypeVar("Seen")

ENDING = (b"q", b"Q", b"\x04")  # the last is Ctrl-D


def watch(
    console: Console,
    look: Callable[[], Seen],
    draw: Callable[[Seen, int, int], RenderableType],
    interval: float,
    pressed: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Show pictures on the whole terminal, which is afterwards as it was.

    Args:
        look: finds out what there is to show, once every ``interval`` seconds.
        draw: makes a picture of that, given the console's columns and lines.
        pressed: waits so many seconds at most, and says whether to end.
        clock: seconds.
    """
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        ended = False
        while not ended:
            seen, looked = look(), clock()
            size = None
            while not ended and clock() - looked < interval:
                if console.size != size:
                    size = console.size
                    live.update(draw(seen, size.width, size.height), refresh=True)
                ended = pressed(max(0.0, min(RESIZE_SECONDS, looked + interval - clock())))


@contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """What waits for a key that ends a `watch`, while keys come singly and are not shown.

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
    return bool(ready) and os.read(descriptor, 1) in (*ENDING, b"")  # nothing: the terminal is gone
