"""Building blocks of what is shown: amounts, progress bars, columns, tables and panels.

Everything is laid out in lines that fit the width given.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from mlxchat.counts import counted, duration, round_size
from mlxchat.disk import DiskUse
from mlxchat.harmless import harmless
from mlxchat.telemetry.events import Progressed

RATE_SECONDS = 15.0  # a task's rate is measured over its last seconds
LEAST_BAR = 10  # characters; amounts and rates are left out before the bar gets shorter

_LINE_BREAK = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")
_SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")
_OTHERWISE = {"conversational": "chat"}  # settings whose option's name differs


def as_options(text: str, mark: str = "--") -> str:
    """Write the settings that a message names as options, or as commands of the chat.

    Args:
        text: a message of any origin, with settings as Python names them in backquotes.
        mark: what comes before the name.

    >>> as_options('Use `depth=4` or `identity="name=Ada, made by=Grace"`.')
    'Use --depth 4 or --identity "name=Ada, made by=Grace".'
    >>> as_options("`top_k`: Keep only this many.", "/")
    '/top-k: Keep only this many.'
    """

    def option(setting: re.Match[str]) -> str:
        name, value = setting.groups()
        written = mark + _OTHERWISE.get(name, name).replace("_", "-")
        if value is None:
            return written
        value = value.strip('"')  # of a string in Python
        return f'{written} "{value}"' if " " in value else f"{written} {value}"

    return _SETTING.sub(option, text)


def amount(count: float, unit: str) -> str:
    """Return a count with its unit: ``1 step``, ``2 steps``; bytes as ``95.1 MB``."""
    return round_size(count) if unit == "bytes" else counted(count, unit)


def with_total(counted_things: str, total: int, each: Sequence[int]) -> str:
    """Return a count with the bytes of all, and why these are less than those of each together."""
    said = f"{counted_things}, {amount(total, 'bytes')}"
    return said if total >= sum(each) else f"{said}; what copies share counts once"


def staying_in_words(use: DiskUse) -> list[str]:
    """Return sentences on what stays on the disk of files that are removed."""
    lines = []
    if use.shared:
        lines.append(
            f"{amount(use.shared, 'bytes')} of that stay on the disk, since copies share them."
        )
    if use.linked:
        lines.append(f"{amount(use.linked, 'bytes')} of that stay where symbolic links lead.")
    return lines


def in_one_line(text: str) -> str:
    """Return text of any origin, harmless and on one line; a line break becomes a blank."""
    return harmless(_LINE_BREAK.sub(" ", text))


def unwrapped(line: Text) -> Text:
    """Make a line end in an ellipsis instead of wrapping, and return it."""
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def bar(share: float, width: int, style: str) -> Text:
    """Return a bar ``━━━━━━────`` of ``width`` characters; empty if that is too short to read."""
    if width < 5:
        return Text()
    filled = round(min(share, 1.0) * width)
    return Text.assemble(("━" * filled, style), ("─" * (width - filled), "dim"))


def labelled_bar(
    label: str, done: int, total: int, width: int, style: str = "cyan", left: float | None = None
) -> Text:
    """Return ``label ━━━━━━──── 61.7%  12s left``, without the bar if there is no room for it.

    The seconds that are ``left``, if they are known, are left out before the bar is.
    """
    share = done / total if total else 0.0
    percent = f"{share:.1%}"
    if left is not None:
        with_left = f"{percent}  {duration(left)} left"
        percent = with_left if width - len(label) - len(with_left) - 4 >= LEAST_BAR else percent
    room = width - len(label) - len(percent) - 4
    line = Text(f"{label}  ", style="bold")
    return line.append_text(bar(share, room, style)).append(f"  {percent}")


class TaskProgress:
    """A download or other task with a progress bar, folded from its `Progressed` events.

    Args:
        first: its first event.
        now: when it came, in seconds by the timer that `update` and `rate` are called with, too.
    """

    def __init__(self, first: Progressed, now: float) -> None:
        self.first = first
        self.latest = first
        self._began, self._ended = now, now
        self._recent = [(now, first.done)]  # of the last `RATE_SECONDS`

    @property
    def seconds(self) -> float:
        """The time between its first and its newest event."""
        return self._ended - self._began

    @property
    def finished(self) -> bool:
        """Whether the task is complete; never true if its total is unknown."""
        return self.latest.total is not None and self.latest.done >= self.latest.total

    def update(self, event: Progressed, now: float) -> None:
        """Fold in the next event of the same task."""
        recent = [past for past in self._recent if now - past[0] <= RATE_SECONDS]
        self._recent = [*(recent or self._recent[-1:]), (now, event.done)]
        self.latest, self._ended = event, now

    def rate(self, now: float) -> float | None:
        """Return the recent speed in units per second; None if nothing has been done yet."""
        since, before = self._recent[0]
        done, seconds = self.latest.done - before, now - since
        return done / seconds if done > 0 and seconds > 0 else None

    def seconds_left(self, now: float) -> float | None:
        """Return the time until it is complete; None if that or its total is unknown."""
        rate, total = self.rate(now), self.latest.total
        return (total - self.latest.done) / rate if rate and total else None


def bars(tasks: Sequence[TaskProgress], *, width: int, now: float) -> Group:
    """Return a line per task: name, bar, and as many as fit of share, time, rate, amount."""
    rows = [_task_columns(task, now) for task in tasks]
    columns = list(zip(*rows, strict=True))
    widths = [max(len(text) for text in column) for column in columns]
    widths[0] = min(widths[0], width // 2)
    shown = len(widths)
    while shown > 2 and width - sum(widths[:shown]) - 2 * shown < LEAST_BAR:
        shown -= 1
    room = width - sum(widths[:shown]) - 2 * shown
    lines = []
    for task, texts in zip(tasks, rows, strict=True):
        name = texts[0] if len(texts[0]) <= widths[0] else f"{texts[0][: widths[0] - 1]}…"
        line = Text(f"{name:<{widths[0]}}  ")
        total = task.latest.total
        line.append_text(bar(task.latest.done / total if total else 0.0, room, "cyan"))
        for text, wide in zip(texts[1:shown], widths[1:shown], strict=True):
            line.append(f"  {text:>{wide}}")
        lines.append(unwrapped(line))
    return Group(*lines)


def task_line(task: TaskProgress, now: float) -> str:
    """Return how far a task is: ``questions: 50 of 200 questions (25%), 12s left``."""
    name, share, left, _, done = _task_columns(task, now)
    line = f"{name}: {done}" + (f" ({share})" if share else "")
    return f"{line}, {left} left" if left else line


def _task_columns(task: TaskProgress, now: float) -> tuple[str, str, str, str, str]:
    """Return name, share, time left, rate and amount, the most important first."""
    event, rate = task.latest, task.rate(now)
    share = f"{event.done / event.total:.0%}" if event.total else ""
    seconds = task.seconds_left(now)
    left = "" if seconds is None else duration(seconds)
    done = amount(event.done, event.unit)
    if event.total is not None:
        so_far = done if event.unit == "bytes" else f"{event.done:,}"
        done = f"{so_far} of {amount(event.total, event.unit)}"
    return (
        in_one_line(event.task),
        share,
        left,
        f"{amount(rate, event.unit)}/s" if rate else "",
        done,
    )


class Cell(NamedTuple):
    """A labelled value."""

    label: str
    value: str
    style: str = "bold"


def column(cells: Sequence[Cell], least: int = 0) -> list[Text]:
    """Return one line per cell, with labels and values aligned and all lines equally long.

    Args:
        least: the minimum width of the values, in characters.
    """
    texts = [in_one_line(cell.value) for cell in cells]
    labels = max((len(cell.label) for cell in cells), default=0)
    values = max((least, *map(len, texts)))
    return [
        Text.assemble((f"{cell.label:<{labels}}  ", "dim"), (f"{value:<{values}}", cell.style))
        for cell, value in zip(cells, texts, strict=True)
    ]


def join(columns: Sequence[Sequence[Text]], gap: int) -> list[Text]:
    """Return the lines of columns set side by side; shorter columns are padded with blanks."""
    joined = []
    for row in range(max(len(lines) for lines in columns)):
        line = Text()
        for lines in columns:
            line.append_text(lines[row] if row < len(lines) else Text(" " * len(lines[0])))
            line.append(" " * gap)
        line.rstrip()
        joined.append(line)
    return joined


def flow(cells: Sequence[Cell], width: int, gap: int) -> list[Text]:
    """Return cells one after the other on as many lines as needed; no cell is split."""
    lines = [Text()]
    for label, anything, style in cells:
        value = in_one_line(anything)
        needed = len(label) + 1 + len(value)
        if lines[-1] and len(lines[-1]) + gap + needed > width:
            lines.append(Text())
        if lines[-1]:
            lines[-1].append(" " * gap)
        lines[-1].append(f"{label} ", "dim").append(value, style)
    return lines


def grid(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, texts: int
) -> list[Text]:
    """Return the lines of a table: a heading line, then the rows.

    The first ``texts`` columns are left-aligned, the others right-aligned. If the table is wider
    than ``width``, the last text column is shortened with an ellipsis.
    """
    lined = [tuple(map(in_one_line, row)) for row in rows]
    columns = list(zip(headings, *lined, strict=True))
    widths = [max(len(text) for text in column) for column in columns]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    widths[texts - 1] = max(len(headings[texts - 1]), widths[texts - 1] - max(0, over))
    lines = []
    for number, row in enumerate((headings, *lined)):
        line = Text(style="dim" if number == 0 else "")
        for index, (text, wide) in enumerate(zip(row, widths, strict=True)):
            fitted = text if len(text) <= wide else f"{text[: wide - 1]}…"
            line.append("  " if index else "")
            line.append(f"{fitted:<{wide}}" if index < texts else f"{fitted:>{wide}}")
        lines.append(line)
    return lines


def wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """Wrap text of any origin to lines; an empty text has none."""
    return [Text(line, style=style) for line in textwrap.wrap(in_one_line(text).strip(), width)]


@dataclass(frozen=True)
class TextPanel:
    """A panel with a title and lines of text."""

    title: str
    lines: Sequence[Text]
    color: str = "blue"

    @property
    def height(self) -> int:
        """The number of lines with the border."""
        return len(self.lines) + 2

    def panel(self, width: int) -> Panel:
        """Return the panel for rich to draw; lines that are too long end in an ellipsis."""
        title = Text(in_one_line(self.title))
        title.truncate(width - 6, overflow="ellipsis")
        body = Group(*(unwrapped(line) for line in self.lines))
        return Panel(body, title=title, width=width, border_style=self.color)
