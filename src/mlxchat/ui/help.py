"""Prints the help of a command, readable at any width of the terminal.

On a narrow terminal the description of an option goes below its name.
"""

import os
import sys
from collections.abc import Iterable, Sequence

from rich.text import Text

from mlxchat.ui.output import LiteralConsole, console_for

NARROWEST, WIDEST = 20, 100  # columns; shorter or longer lines are hard to read
ONE_COLUMN = 60  # columns below which a description goes below the name
LABEL_WIDTH = 28  # columns of the names and their values, where there are two columns

HelpEntry = tuple[str, str]
"""A command, or an option with the placeholder of its value, and its description."""


def print_help(
    above: Iterable[str], sections: Iterable[tuple[str, Sequence[HelpEntry]]], below: Iterable[str]
) -> None:
    """Print a command's help to standard output.

    Args:
        above: the paragraphs before the sections: usage and description.
        sections: headings, each with its entries.
        below: the paragraphs after them.
    """
    console = console_for(sys.stdout)
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) else console.width
    width = max(NARROWEST, min(width, WIDEST))
    for number, paragraph in enumerate(above):
        if number:
            console.print()
        _print(console, Text(paragraph), width)
    for title, entries in sections:
        console.print()
        _print(console, Text(title, "bold"), width)
        for name, description in entries:
            _print_entry(console, Text(name, "cyan"), Text(description), width)
    for paragraph in below:
        console.print()
        _print(console, Text(paragraph), width)


def _print_entry(console: LiteralConsole, name: Text, description: Text, width: int) -> None:
    if width < ONE_COLUMN:
        _print(console, name, width, indent=2)
        _print(console, description, width, indent=6)
    elif len(name) > LABEL_WIDTH - 2:
        _print(console, name, width, indent=2)
        _print(console, description, width, indent=2 + LABEL_WIDTH)
    else:
        name.pad_right(LABEL_WIDTH - len(name))
        _print(console, description, width, indent=2 + LABEL_WIDTH, before=name)


def _print(
    console: LiteralConsole, text: Text, width: int, indent: int = 0, before: Text | None = None
) -> None:
    """Print a text in lines of at most ``width`` columns, ``indent`` columns from the left.

    The first line has ``before`` in front of it, in the last of these columns.
    """
    before = before or Text()
    first = Text(" " * (indent - len(before))) + before
    for line in text.wrap(console, width - indent) or [Text()]:
        shown = first + line
        shown.rstrip()
        console.print(shown, soft_wrap=True)
        first = Text(" " * indent)
