"""The panel shown while a model trains, and its loss curve in braille characters.

`dashboard` is a pure function from a `Meter` and a size to what rich draws. Every line is laid out
to fit, so that nothing wraps and no number is cut, from 160 columns down to 40.
"""

import math
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Sequence

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from mlxchat.counts import duration, part_of_size, round_size, score_within, share_within
from mlxchat.telemetry.events import Drawing, Evaluating, Memory, Rewarded, Sampled, Stepped
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.text import (
    Cell,
    column,
    in_one_line,
    join,
    labelled_bar,
    unwrapped,
)

BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode's bit of each dot


def labelled_curve(
    points: Sequence[tuple[float, float]],
    width: int,
    height: int,
    title: str = "loss",
    spell: Callable[[float], str] = "{:,}".format,
) -> list[Text]:
    """Return a curve with axes on ``height`` lines; nothing for fewer than two points.

    Args:
        points: ``(x, y)``, by increasing x.
        width, height: in characters.
        title: stands below the curve.
        spell: writes the first and the last x.
    """
    if len(points) < 2:
        return []
    losses = [loss for _, loss in points]
    top, bottom = _short(max(losses), 2), _short(min(losses), 2)
    margin = max(len(top), len(bottom))
    rows = curve(points, width - margin - 2, height - 1)
    labels = [top, *[""] * (len(rows) - 2), bottom]
    lines = [
        Text.assemble((f"{label:>{margin}} │", "dim"), (row, "green"))
        for label, row in zip(labels, rows, strict=True)
    ]
    first, last = spell(points[0][0]), spell(points[-1][0])
    axis = title.center(width - margin - 2)
    axis = f"{first}{axis[len(first) : len(axis) - len(last)]}{last}"
    return [*lines, Text(" " * (margin + 2) + axis, style="dim")]


def progress_curve(meter: Meter, width: int, height: int) -> list[Text]:
    """Return the `labelled_curve` of a run's rewards, or of its losses if it has none."""
    if meter.rewards:
        return labelled_curve(meter.rewards, width, height, "reward")
    return labelled_curve(meter.losses, width, height)


def curve(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """Draw a line through ``(x, y)`` points in braille, two by four dots per character.

    Args:
        points: at least two, by increasing x.
        width, height: in characters.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, span = min(ys), (max(ys) - min(ys)) or 1.0
    columns, rows = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    previous = None
    for dot_column in range(columns):
        x = xs[0] + (xs[-1] - xs[0]) * dot_column / (columns - 1)
        right = min(bisect_right(xs, x), len(xs) - 1)
        share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
        y = ys[right - 1] + share * (ys[right] - ys[right - 1])
        row = round((1 - (y - low) / span) * (rows - 1))
        start = row if previous is None else previous
        for dot in range(min(start, row), max(start, row) + 1):
            cells[dot // 4][dot_column // 2] |= BRAILLE[dot % 4][dot_column % 2]
        previous = row
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in cells]


GAP = 3  # characters between columns
ROUNDED = 1e6  # the loss from which it is shown with two digits
CURVE_HEIGHT = 10  # the most lines of a curve below the numbers
BESIDE_WIDTH, BESIDE_HEIGHT = 110, 22  # the size from which the curve stands beside them
SAMPLE_LINES = 2
INTERVAL_WIDTH = 50  # columns from which scores are shown with their intervals
SLOW = 2.0  # seconds without a first step, after which the panel says why


def shown_loss(meter: Meter, latest: Stepped | None) -> str:
    """Return the smoothed loss, or ``nan`` or ``inf`` if the last step has diverged."""
    if latest and not math.isfinite(latest.loss):
        return str(latest.loss)
    return "–" if meter.loss is None else _short(meter.loss, 4)


def _short(number: float, places: int) -> str:
    return f"{number:.{places}f}" if abs(number) < ROUNDED else f"{number:.1e}"


def dashboard(
    meter: Meter,
    latest: Stepped | None = None,
    *,
    width: int = 80,
    height: int = 24,
    waited: float = 0.0,
    under_way: Evaluating | Drawing | None = None,
    left: float | None = None,
    sample: Sampled | None = None,
) -> Panel:
    """Return the panel of a run, at most ``height`` lines of exactly ``width`` characters.

    Args:
        meter: the run's events so far, folded.
        latest: the last step; None before the first one of this process.
        waited: seconds since the last event, so that the clocks advance during a long step.
        under_way: the progress of an evaluation, or of the answers that a step learns from.
        left: seconds until that is done; None if it is not known.
        sample: the model's last sample.
    """
    inner = width - 4
    lines = [_progress(meter, inner)]
    if isinstance(under_way, Evaluating):
        label = f"evaluating {under_way.batch:,}/{under_way.batches:,}"
        lines.append(labelled_bar(label, under_way.batch, under_way.batches, inner, left=left))
    elif under_way:
        done = under_way.rewarded or under_way.answers
        lines.append(labelled_bar(under_way.in_words, done, under_way.total, inner, left=left))
    elif latest is None and waited >= SLOW:
        compiling = Text(f"compiling the first step, {duration(waited)} so far", style="dim")
        compiling.truncate(inner, overflow="ellipsis")
        lines.append(compiling)
    groups = _numbers(meter, latest, waited, width >= INTERVAL_WIDTH)
    room = height - 2 - len(lines)
    if width >= BESIDE_WIDTH and room >= BESIDE_HEIGHT - 3:
        lines += [Text(), *_beside(groups, meter, inner)]
    else:
        lines += _stacked(groups, meter, inner, room)
    if sample and height - 2 - len(lines) > SAMPLE_LINES:
        worth = "" if sample.reward is None else f", reward {sample.reward:g}"
        prompt = Text(f'sample{worth} after "{in_one_line(sample.prompt.strip())}"', style="dim")
        prompt.truncate(inner, overflow="ellipsis")
        text = in_one_line(sample.text.strip())
        wrapped = textwrap.wrap(text, inner, max_lines=SAMPLE_LINES, placeholder=" …")
        lines += [prompt, *(Text(line, style="italic") for line in wrapped)]
    started = meter.started
    title = Text(f"{started.tag} · {started.where}" if started else "mlxchat")
    title.truncate(inner, overflow="ellipsis")
    body = Group(*(unwrapped(line) for line in lines))
    return Panel(body, title=title, width=width, border_style="cyan")


def _progress(meter: Meter, width: int) -> Text:
    label = f"step {meter.step:,}/{meter.total_steps:,}"
    return labelled_bar(label, meter.step, meter.total_steps, width, "green")


def _numbers(
    meter: Meter, latest: Stepped | None, waited: float, has_room: bool
) -> list[list[Cell]]:
    """Return three groups of numbers, one per column if there is room: loss, speed, memory."""
    if meter.rewarded is not None:
        learning, speeds = _of_answers(meter, meter.rewarded, latest, has_room)
    else:
        learning, speeds = _of_text(meter, latest, has_room)
    left = meter.seconds_left
    if meter.waiting_share is not None:
        speeds.append(Cell("waiting for ranks", f"{meter.waiting_share:.0%}"))
    speeds.append(Cell("elapsed", duration(meter.elapsed + waited)))
    speeds.append(Cell("left", "–" if left is None else duration(max(0.0, left - waited))))
    if not latest:
        return [learning, speeds, []]
    here = latest.position
    place = f"epoch {here.epoch:,}, shard {here.shard + 1:,}/{here.shards:,}"
    return [learning, speeds, [Cell("data", place), *_memory(latest.memory, meter)]]


def _of_answers(
    meter: Meter, rewarded: Rewarded, latest: Stepped | None, has_room: bool
) -> tuple[list[Cell], list[Cell]]:
    """Return what a run that learns from rewarded answers shows of these, and of its speed.

    Args:
        meter: the run's events so far.
        rewarded: the answers of the last step.
        latest: the last step; None before the first one of this process.
        has_room: whether intervals are shown.
    """
    reward = math.nan if meter.reward is None else meter.reward
    learning = [Cell("reward", f"{reward:.3f}")]
    if meter.judged is not None:
        judged = meter.judged
        ends = (judged.pass_1_low, judged.pass_1_high) if has_room else None
        learning.append(Cell("pass@1", share_within(judged.pass_1, ends)))
        if judged.samples > 1:
            ends = (judged.pass_k_low, judged.pass_k_high) if has_room else None
            learning.append(Cell(f"pass@{judged.samples}", share_within(judged.pass_k, ends)))
    learning.append(Cell("all right", f"{rewarded.all_right:.0%}"))
    learning.append(Cell("all wrong", f"{rewarded.all_wrong:.0%}"))
    learning.append(Cell("entropy", f"{rewarded.entropy:.3f}"))
    learning.append(Cell("answer", f"{rewarded.length:.1f} tokens"))
    if rewarded.cut_off:
        learning.append(Cell("cut off", f"{rewarded.cut_off:.0%}"))
    speeds = [Cell("sampled", f"{speed(rewarded.tokens, rewarded.seconds)} tokens/s")]
    if latest:
        rate = speed(rewarded.learned, latest.seconds - rewarded.seconds)
        speeds.append(Cell("trained", f"{rate} tokens/s"))
        speeds.append(Cell("learning rate", f"{latest.learning_rate:.3g}"))
        speeds.append(Cell("gradient norm", f"{latest.gradient_norm:.3g}"))
    return learning, speeds


def speed(tokens: int, seconds: float) -> str:
    """Return tokens per second as text; a dash if no time has passed."""
    return f"{tokens / seconds:,.0f}" if seconds > 0 else "–"


def _of_text(meter: Meter, latest: Stepped | None, has_room: bool) -> tuple[list[Cell], list[Cell]]:
    """Return what a run that learns from text shows of its loss and of its speed.

    Args:
        meter: the run's events so far.
        latest: the last step; None before the first one of this process.
        has_room: whether intervals are shown.
    """
    diverged = latest is not None and not math.isfinite(latest.loss)
    learning = [Cell("loss", shown_loss(meter, latest), "bold red" if diverged else "bold")]
    if meter.bits_per_byte is not None and meter.best is not None:
        (step, lowest), latest_step = meter.best, meter.evaluations[-1][0]
        at = f"{meter.bits_per_byte:.4f}, step {latest_step:,}"
        learning.append(Cell("bits per byte", at))
        if step != latest_step:
            learning.append(Cell("best", f"{lowest:.4f}, step {step:,}"))
    if meter.core:
        _, core, error, _ = meter.core[-1]
        shown = score_within(core, error) if has_room else f"{core:.4f}"
        learning.append(Cell("CORE", shown))
    if latest:
        learning.append(Cell("learning rate", f"{latest.learning_rate:.3g}"))
        learning.append(Cell("gradient norm", f"{latest.gradient_norm:.3g}"))
    rate = meter.tokens_per_second
    speeds = [Cell("tokens/s", "–" if rate is None else f"{rate:,.0f}")]
    if meter.mfu is not None:
        speeds.append(Cell("MFU", f"{meter.mfu:.1%}"))
    if meter.matmul_share is not None:
        speeds.append(Cell("of matmul speed", f"{meter.matmul_share:.1%}"))
    return learning, speeds


def _memory(memory: Memory, meter: Meter) -> list[Cell]:
    peak = round_size(meter.peak_memory)
    if meter.started and meter.started.estimated_memory:
        peak += f" of ~{round_size(meter.started.estimated_memory)}"
    used = part_of_size(memory.machine_used, memory.machine_total)
    return [
        Cell("MLX active", round_size(memory.active)),
        Cell("MLX peak", peak),
        Cell("MLX cache", round_size(memory.cache)),
        Cell("machine", used, "bold yellow" if memory.machine_full else "bold"),
    ]


def _beside(groups: Sequence[Sequence[Cell]], meter: Meter, width: int) -> list[Text]:
    numbers = column([cell for group in groups for cell in group])
    room = width - len(numbers[0]) - 2 * GAP
    drawn = progress_curve(meter, room, len(numbers))
    return join([numbers, drawn], 2 * GAP) if drawn else numbers


def _stacked(groups: Sequence[Sequence[Cell]], meter: Meter, width: int, room: int) -> list[Text]:
    """Return as many columns of numbers as fit, and the curve in the lines below them."""
    cells = [cell for group in groups for cell in group]
    half = (len(cells) + 1) // 2
    for columns in ([group for group in groups if group], [cells[:half], cells[half:]], [cells]):
        laid = [column(side) for side in columns]
        if sum(len(side[0]) for side in laid) + GAP * (len(laid) - 1) <= width:
            break
    numbers = join(laid, GAP)
    spare = room - len(numbers)
    roomy = spare >= CURVE_HEIGHT
    height = min(spare - 2 * roomy - (1 + SAMPLE_LINES) * roomy, CURVE_HEIGHT)
    blank = [Text()] if roomy else []
    curve = progress_curve(meter, width, height) if height >= 4 else []
    return [*blank, *numbers[:room], *(blank if curve else []), *curve]
