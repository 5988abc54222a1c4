"""Numbers with their names, in columns, lines and tables, and panels of such lines."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from mlxchat.ui.bars import in_one_line, unwrapped


class Cell(NamedTuple):
    """A number with its name."""

    label: str
    value: str
    style: str = "bold"


def column(cells: Sequence[Cell], least: int = 0) -> list[Text]:
    """Cells under each other, labels and values aligned, every line equally long.

    The values take ``least`` characters at least.
    """
    labels = max((len(cell.label) for cell in cells), default=0)
    values = max((least, *(len(cell.value) for cell in cells)))
    return [
        Text.assemble((f"{label:<{labels}}  ", "dim"), (f"{value:<{values}}", style))
        for label, value, style in cells
    ]


def join(columns: Sequence[Sequence[Text]], gap: int) -> list[Text]:
    """Columns side by side, the shorter ones filled up with blanks."""
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
    """Cells one after the other, on as many lines as they need, none broken in two."""
    lines = [Text()]
    for label, value, style in cells:
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
    """Rows under their headings, the first ``texts`` columns to the left, the others to the right.

    Of the texts, the last gets shorter, with an ellipsis, where ``width`` does not suffice.
    """
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(len(text) for text in column) for column in columns]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    widths[texts - 1] = max(len(headings[texts - 1]), widths[texts - 1] - max(0, over))
    lines = []
    for number, row in enumerate((headings, *rows)):
        line = Text(style="dim" if number == 0 else "")
        for index, (text, wide) in enumerate(zip(row, widths, strict=True)):
            cut = text if len(text) <= wide else f"{text[: wide - 1]}…"
            line.append("  " if index else "")
            line.append(f"{cut:<{wide}}" if index < texts else f"{cut:>{wide}}")
        lines.append(line)
    return lines


def wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """A text of any origin on as many lines as it takes; none for an empty one."""
    return [Text(line, style=style) for line in textwrap.wrap(in_one_line(text), width)]


@dataclass(frozen=True)
class Section:
    """A panel and what is in it, a line each."""

    title: str
    lines: Sequence[Text]
    color: str = "blue"

    @property
    def height(self) -> int:
        """Lines that it takes, with its border."""
        return len(self.lines) + 2

    def panel(self, width: int) -> Panel:
        """What is drawn."""
        title = Text(in_one_line(self.title))
        title.truncate(width - 6, overflow="ellipsis")
        body = Group(*(unwrapped(line) for line in self.lines))
        return Panel(body, title=title, width=width, border_style=self.color)
