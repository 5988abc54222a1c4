"""What `mlxchat monitor` shows: a pure function from a `Snapshot` and a size to what rich draws.

Runs that go on, or did a little while ago, get a panel each as long as there is room, the others a
line. Every line is laid out here to fit; only a command or a name too long for its column is cut.
"""

from rich.console import Group
from rich.text import Text

from mlxchat.monitor.runs import Run, Snapshot
from mlxchat.telemetry.events import MACHINE_FULL
from mlxchat.ui.bars import amount, in_one_line, labelled_bar, memory_size, unwrapped
from mlxchat.ui.cells import Cell, Section, flow, grid, wrapped
from mlxchat.ui.dashboard import GAP
from mlxchat.ui.runs import panels, table

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
