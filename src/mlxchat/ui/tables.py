"""Tables of labelled numbers: one below the other, side by side where they fit, or as Markdown.

All functions are pure except `show`, which prints.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mlxchat.ui.output import console_for
from mlxchat.ui.text import in_one_line

ABREAST = 130  # columns of a terminal from which two tables go side by side
COLUMN_GAP = 4


class Row(NamedTuple):
    """A labelled number and a note about it."""

    label: str
    value: str
    note: str = ""


class Section(NamedTuple):
    """A titled group of rows."""

    title: str
    rows: Sequence[Row]


def about(seconds: float) -> str:
    """Return an estimated time as text, without false precision: ``about 3.2 hours``."""
    for unit, size in (("years", 365 * 86_400), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"about {count:,.0f} {unit}" if count >= 10 else f"about {count:.1f} {unit}"
    return f"about {seconds:.0f} seconds" if seconds >= 1.5 else "about a second"


def tables(heading: Sequence[str], sections: Sequence[Section], width: int) -> Group:
    """Return the heading lines and one table per section, at most ``width`` characters wide."""
    lines = [Text(line, style="bold" if i == 0 else "") for i, line in enumerate(heading)]
    if width < ABREAST:
        each = [_table(section) for section in sections]
        return Group(*lines, *(part for drawn in each for part in (Text(), drawn)))
    half = (width - COLUMN_GAP) // 2
    abreast = Table.grid(padding=(0, COLUMN_GAP, 0, 0))
    abreast.add_column(width=half)
    abreast.add_column(width=half)
    for left in range(0, len(sections), 2):
        abreast.add_row("")
        abreast.add_row(*map(_table, sections[left : left + 2]))
    return Group(*lines, abreast)


def markdown(heading: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the sections as one Markdown table, with each number and its note in one cell."""
    lines = [f"**{heading[0]}**", *heading[1:], "", "| | |", "|---|---|"]
    for section in sections:
        lines.append(f"| **{in_a_cell(section.title)}** | |")
        for row in section.rows:
            value = " ".join(filter(None, (row.value, row.note)))
            lines.append(f"| {in_a_cell(row.label)} | {in_a_cell(value)} |")
    return "\n".join(lines)


def in_a_cell(text: str) -> str:
    """Return text of any origin for a cell of a Markdown table."""
    return in_one_line(text).replace("|", r"\|")


def show(heading: Sequence[str], sections: Sequence[Section], stream: TextIO | None = None) -> None:
    """Print the tables; one below the other unless the output is a wide terminal."""
    console = console_for(stream or sys.stdout)
    width = console.width if console.is_terminal else ABREAST - 1
    console.print(tables(heading, sections, width), width=width)


def _table(section: Section) -> Table:
    drawn = Table(
        title=Text(section.title, style="bold cyan"),
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, justify="right")
    drawn.add_column(overflow="fold")
    for row in section.rows:
        drawn.add_row(Text(row.label), Text(row.value, "bold"), Text(row.note))
    return drawn
