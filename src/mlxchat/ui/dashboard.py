"""The panel that one watches while a model trains.

A pure function from a `Meter` and a size in characters to something that rich draws: every line is
laid out here to fit, so that nothing wraps and no number is cut, from 160 columns down to 40.
"""

import math
import textwrap
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from mlxchat.telemetry import Evaluating, Memory, Meter, Sampled, Stepped
from mlxchat.ui.bars import bar, duration, in_one_line, memory_size, unwrapped

GAP = 3  # characters between columns
CURVE_HEIGHT = 10  # lines at most, where the curve stands below the numbers
BESIDE_WIDTH, BESIDE_HEIGHT = 110, 22  # from here on it stands beside them
SAMPLE_LINES = 2
MACHINE_FULL = 0.8  # of its memory: beyond, a machine begins to swap


class Cell(NamedTuple):
    """A number with its name."""

    label: str
    value: str
    style: str = "bold"


def shown_loss(meter: Meter, latest: Stepped | None) -> str:
    """The smoothed loss, or ``nan`` where the last step's says that the run has diverged."""
    if latest and not math.isfinite(latest.loss):
        return str(latest.loss)
    return "–" if meter.loss is None else f"{meter.loss:.4f}"


def dashboard(
    meter: Meter,
    latest: Stepped | None = None,
    *,
    width: int = 80,
    height: int = 24,
    waited: float = 0.0,
    evaluating: Evaluating | None = None,
    sample: Sampled | None = None,
) -> Panel:
    """A run at a glance, at most ``height`` lines of exactly ``width`` characters.

    Args:
        meter: what has happened so far.
        latest: the last step; None before the first of this process.
        waited: seconds since the last event, so that the clocks go on during a long step.
        evaluating: how far an evaluation that is under way has come.
        sample: the model's last sample.
    """
    inner = width - 4
    lines = [_progress(meter, inner)]
    if evaluating:
        label = f"evaluating {evaluating.batch:,}/{evaluating.batches:,}"
        lines.append(_bar_line(label, evaluating.batch, evaluating.batches, inner))
    groups = _numbers(meter, latest, waited)
    room = height - 2 - len(lines)
    if width >= BESIDE_WIDTH and room >= BESIDE_HEIGHT - 3:
        lines += [Text(), *_beside(groups, meter.losses, inner)]
    else:
        lines += _stacked(groups, meter.losses, inner, room)
    if sample and height - 2 - len(lines) > SAMPLE_LINES:
        text = in_one_line(f"{sample.prompt}{sample.text}")
        wrapped = textwrap.wrap(text, inner, max_lines=SAMPLE_LINES, placeholder=" …")
        lines += [Text(), *(Text(line, style="italic") for line in wrapped)]
    started = meter.started
    title = Text(f"{started.tag} · {started.device}" if started else "mlxchat")
    title.truncate(inner, overflow="ellipsis")
    body = Group(*(unwrapped(line) for line in lines))
    return Panel(body, title=title, width=width, border_style="cyan")


def _bar_line(label: str, done: int, total: int, width: int, style: str = "cyan") -> Text:
    """``label ━━━━━━──── 61.7%``; without the bar where there is no room for one."""
    share = done / total if total else 0.0
    percent = f"{share:.1%}"
    room = width - len(label) - len(percent) - 4
    line = Text(f"{label}  ", style="bold")
    return line.append_text(bar(share, room, style)).append(f"  {percent}")


def _progress(meter: Meter, width: int) -> Text:
    label = f"step {meter.step:,}/{meter.total_steps:,}"
    return _bar_line(label, meter.step, meter.total_steps, width, "green")


def _numbers(meter: Meter, latest: Stepped | None, waited: float) -> list[list[Cell]]:
    """Learning, speed, data and memory: three groups, each a column where there is room."""
    diverged = latest is not None and not math.isfinite(latest.loss)
    learning = [Cell("loss", shown_loss(meter, latest), "bold red" if diverged else "bold")]
    if meter.bits_per_byte is not None and meter.best_bits_per_byte is not None:
        learning.append(Cell("bits per byte", f"{meter.bits_per_byte:.4f}"))
        learning.append(Cell("best", f"{meter.best_bits_per_byte:.4f}"))
    if latest:
        learning.append(Cell("learning rate", f"{latest.learning_rate:.3g}"))
        learning.append(Cell("gradient norm", f"{latest.gradient_norm:.3g}"))
    rate, left = meter.tokens_per_second, meter.seconds_left
    speed = [Cell("tokens/s", "–" if rate is None else f"{rate:,.0f}")]
    if meter.mfu is not None:
        speed.append(Cell("MFU", f"{meter.mfu:.1%}"))
    speed.append(Cell("elapsed", duration(meter.elapsed + waited)))
    speed.append(Cell("left", "–" if left is None else duration(max(0.0, left - waited))))
    if not latest:
        return [learning, speed, []]
    here = latest.position
    place = f"epoch {here.epoch:,}, shard {here.shard + 1:,}/{here.shards:,}"
    return [learning, speed, [Cell("data", place), *_memory(latest.memory, meter.peak_memory)]]


def _memory(memory: Memory, peak: int) -> list[Cell]:
    full = memory.machine_used > MACHINE_FULL * memory.machine_total
    used = f"{memory.machine_used / 2**30:.1f} of {memory_size(memory.machine_total)}"
    return [
        Cell("MLX active", memory_size(memory.active)),
        Cell("MLX peak", memory_size(peak)),
        Cell("MLX cache", memory_size(memory.cache)),
        Cell("machine", used, "bold yellow" if full else "bold"),
    ]


def _column(cells: Sequence[Cell]) -> list[Text]:
    """Cells under each other, labels and values aligned, every line equally long."""
    labels = max((len(cell.label) for cell in cells), default=0)
    values = max((len(cell.value) for cell in cells), default=0)
    return [
        Text.assemble((f"{label:<{labels}}  ", "dim"), (f"{value:<{values}}", style))
        for label, value, style in cells
    ]


def _join(columns: Sequence[Sequence[Text]], gap: int) -> list[Text]:
    """Columns side by side, the shorter ones filled up with blanks."""
    lines = []
    for row in range(max(len(column) for column in columns)):
        line = Text()
        for column in columns:
            line.append_text(column[row] if row < len(column) else Text(" " * len(column[0])))
            line.append(" " * gap)
        line.rstrip()
        lines.append(line)
    return lines


def _beside(
    groups: Sequence[Sequence[Cell]], points: Sequence[tuple[int, float]], width: int
) -> list[Text]:
    numbers = _column([cell for group in groups for cell in group])
    room = width - len(numbers[0]) - 2 * GAP
    drawn = _labelled_curve(points, room, len(numbers))
    return _join([numbers, drawn], 2 * GAP) if drawn else numbers


def _stacked(
    groups: Sequence[Sequence[Cell]], points: Sequence[tuple[int, float]], width: int, room: int
) -> list[Text]:
    """As many columns of numbers as fit, and the curve below them in the lines that are left."""
    cells = [cell for group in groups for cell in group]
    half = (len(cells) + 1) // 2
    for columns in ([group for group in groups if group], [cells[:half], cells[half:]], [cells]):
        laid = [_column(column) for column in columns]
        if sum(len(column[0]) for column in laid) + GAP * (len(laid) - 1) <= width:
            break
    numbers = _join(laid, GAP)
    spare = room - len(numbers)
    roomy = spare >= CURVE_HEIGHT
    height = min(spare - 2 * roomy - (1 + SAMPLE_LINES) * roomy, CURVE_HEIGHT)
    blank = [Text()] if roomy else []
    curve = _labelled_curve(points, width, height) if height >= 4 else []
    return [*blank, *numbers[:room], *(blank if curve else []), *curve]


def _labelled_curve(points: Sequence[tuple[int, float]], width: int, height: int) -> list[Text]:
    """The loss over the steps, the last of ``height`` lines its axis; nothing for one point."""
    if len(points) < 2:
        return []
    losses = [loss for _, loss in points]
    top, bottom = f"{max(losses):.2f}", f"{min(losses):.2f}"
    margin = max(len(top), len(bottom))
    rows = curve(points, width - margin - 2, height - 1)
    labels = [top, *[""] * (len(rows) - 2), bottom]
    lines = [
        Text.assemble((f"{label:>{margin}} │", "dim"), (row, "green"))
        for label, row in zip(labels, rows, strict=True)
    ]
    first, last = f"{points[0][0]:,}", f"{points[-1][0]:,}"
    axis = "loss".center(width - margin - 2)
    axis = f"{first}{axis[len(first) : len(axis) - len(last)]}{last}"
    return [*lines, Text(" " * (margin + 2) + axis, style="dim")]


def curve(points: Sequence[tuple[int, float]], width: int, height: int) -> list[str]:
    """A line through ``(x, y)`` points in braille, two by four dots a character.

    Args:
        points: at least two, by rising x.
        width, height: in characters.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, span = min(ys), (max(ys) - min(ys)) or 1.0
    columns, rows = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    previous = None
    for column in range(columns):
        x = xs[0] + (xs[-1] - xs[0]) * column / (columns - 1)
        right = min(bisect_right(xs, x), len(xs) - 1)
        share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
        y = ys[right - 1] + share * (ys[right] - ys[right - 1])
        row = round((1 - (y - low) / span) * (rows - 1))
        start = row if previous is None else previous
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][column // 2] |= BRAILLE[dot % 4][column % 2]
        previous = row
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in cells]


BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode's bit of each dot
