"""Prints everything that the commands print: events as they come, tables, lines, errors.

A `Screen` shows events as the output allows: a live panel and bars on a terminal, plain lines in a
file or a pipe, JSON for programs.
"""

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TextIO

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mlxchat.telemetry.clock import SYSTEM_CLOCK, Timer
from mlxchat.telemetry.events import Event, json_line
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.output import LiteralConsole, console_for
from mlxchat.ui.text import as_options, in_one_line
from mlxchat.ui.views import JsonView, LiveView, PlainView, View
from mlxchat.ui.wrapping import WordStream, in_lines

_GAP = 2  # blanks between the columns of a table


class Screen:
    """Shows the events of a run, of downloads and of other tasks, as a context manager.

    Several threads may use it, as long as only one of them sends the events of the training.

    Args:
        json: show each event as a line of JSON, and nothing else.
        stream: where to write; standard output by default.
        console: a console to use instead of ``stream``.
        timer: returns seconds since any origin; speeds and times left are measured by it.
    """

    def __init__(
        self,
        json: bool = False,
        stream: TextIO | None = None,
        console: LiteralConsole | None = None,
        timer: Timer = SYSTEM_CLOCK.seconds,
    ) -> None:
        console = console or console_for(stream or sys.stdout)
        self._meter = Meter()
        self._folds = True
        self._open = True
        self._view: View
        if json:
            self._view = JsonView(console)
        elif console.is_terminal and not console.is_dumb_terminal:
            self._view = LiveView(console, timer)
        else:
            self._view = PlainView(console, timer)

    def follow(self, meter: Meter) -> None:
        """Show this meter, which the run itself updates before it yields an event.

        The meter of a resumed run knows the earlier steps, unlike a new one.
        """
        self._meter, self._folds = meter, False

    def show(self, event: Event) -> None:
        """Show an event, unless the context has ended. Output errors are ignored."""
        if not self._open:
            return
        if self._folds:
            self._meter.update(event)
        self._view.show(event, self._meter)

    def __enter__(self) -> "Screen":
        _screens.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open = False
        if self in _screens:
            _screens.remove(self)
        self._view.close()


_screens: list[Screen] = []  # within their contexts


def close_screens() -> None:
    """End all panels and bars, for a process that says why it ends and runs no clean-up."""
    for screen in tuple(_screens):
        screen.__exit__()


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print text, by default to standard output; on a terminal, lines end between words.

    Commands, paths and addresses can be copied whole, even if they take several lines.
    """
    _print_words(console_for(stream or sys.stdout), text)


def say_whole(text: str, stream: TextIO | None = None) -> None:
    """Print lines as they are, such as a command or a traceback; the terminal breaks them."""
    console_for(stream or sys.stdout).print(Text(text), soft_wrap=True)


def say_paragraphs(*paragraphs: str, stream: TextIO | None = None) -> None:
    """Print paragraphs of prose between empty lines; on a terminal, lines end between words."""
    console = console_for(stream or sys.stdout)
    for paragraph in paragraphs:
        console.write("\n")
        _print_words(console, paragraph)
    console.write("\n")


def say_json(value: object) -> None:
    """Print a value as a line of JSON, as `json_line` writes it, to standard output."""
    console_for(sys.stdout).write(f"{json_line(value)}\n")


def error(problem: str, remedy: str = "", stream: TextIO | None = None) -> None:
    """Print an error and, on a line of its own, its remedy, by default to standard error."""
    console = console_for(stream or sys.stderr)
    console.print(Text("Error: ", "bold red"), end="", soft_wrap=True)
    _print_words(console, in_one_line(as_options(problem)), len("Error: "))
    if remedy := in_one_line(as_options(remedy)):
        _print_words(console, remedy)


def _print_words(console: LiteralConsole, text: str, column: int = 0) -> None:
    """Print a text from a column on, as `in_lines` breaks it; a file gets it as it is."""
    words = WordStream(console, column)
    words.write_prose(text)
    words.close()
    console.write("\n")


def warning(text: str, stream: TextIO | None = None) -> None:
    """Print a warning, by default to standard error."""
    console = console_for(stream or sys.stderr)
    console.print(Text("Warning: ", "bold yellow"), end="", soft_wrap=True)
    _print_words(console, in_one_line(as_options(text)), len("Warning: "))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | int | float]],
    stream: TextIO | None = None,
) -> None:
    """Print a table: text left-aligned, numbers right-aligned, nothing shortened.

    Where the terminal is too narrow for whole words, each row is a list of its cells below its
    first.
    """
    listed = [list(row) for row in rows]
    texts = [
        [Text(in_one_line(cell) if isinstance(cell, str) else f"{cell:,}") for cell in row]
        for row in listed
    ]
    numeric = [
        bool(listed) and not any(isinstance(row[index], str) for row in listed)
        for index in range(len(columns))
    ]
    console = console_for(stream or sys.stdout)
    shown: Table | Group
    widths = _column_widths(columns, texts, numeric, console.width)
    if widths is None:
        shown = _stacked(columns, texts, console.width)
    else:
        shown = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for name, is_numeric, width in zip(columns, numeric, widths, strict=True):
            shown.add_column(Text(name), justify="right" if is_numeric else "left", width=width)
        for cells in texts:
            shown.add_row(*cells)
    console.print(shown, crop=False)  # the terminal breaks what is longer than a line


def _column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[Text]], numeric: Sequence[bool], width: int
) -> list[int] | None:
    """Return the widths of columns that break no word; None if the terminal is too narrow for that.

    The first column and numbers stay on one line. Of the others, those become narrower whose cells
    take the fewest lines more, the widest first.
    """
    cells = [
        [name.split(), *(row[index].plain.split() for row in rows)]
        for index, name in enumerate(columns)
    ]
    widths = [max(map(_length, column)) for column in cells]
    least = [
        widths[index]
        if numeric[index] or index == 0
        else max(cell_len(word) for words in column for word in words or [""])
        for index, column in enumerate(cells)
    ]
    room = width - _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None

    @cache
    def lines(index: int, width: int) -> int:
        return sum(_lines(words, width) for words in cells[index])

    def cost(index: int) -> tuple[int, int]:
        width = widths[index]
        return lines(index, width - 1) - lines(index, width), -width

    while sum(widths) > room:
        wide = [index for index in range(len(columns)) if widths[index] > least[index]]
        widths[min(wide, key=cost)] -= 1
    return widths


def _length(words: Sequence[str]) -> int:
    """Return the cells that words take on one line."""
    return sum(map(cell_len, words)) + max(0, len(words) - 1)


def _lines(words: Sequence[str], width: int) -> int:
    """Return how many lines words take, broken between them."""
    lines, used = 1, -1
    for word in words:
        used += 1 + cell_len(word)
        if used > width:
            lines, used = lines + 1, cell_len(word)
    return lines


def _stacked(columns: Sequence[str], rows: Iterable[Sequence[Text]], width: int) -> Group:
    """Return each row as its first cell and, below that, the others with their columns' names.

    A cell with a word that is too long for its place, such as a path, stands below the name.
    """
    parts: list[Text | Table] = []
    label = max(map(cell_len, columns[1:]), default=0) + 2
    for first, *others in rows:
        first.stylize("bold")
        parts.append(_alone(first))
        for name, cell in zip(columns[1:], others, strict=True):
            if max(map(cell_len, cell.plain.split()), default=0) > width - label:
                parts += [Text(name), _alone(Text(in_lines(cell.plain, width)))]
                continue
            below = Table.grid(padding=(0, _GAP, 0, 0))
            below.add_column(width=label - 2)
            below.add_column()
            below.add_row(Text(name), cell)
            parts.append(below)
    return Group(*parts)


def _alone(text: Text) -> Text:
    """Have the terminal break a text, so that it can be copied, and return it."""
    text.no_wrap, text.overflow = True, "ignore"
    return text


def answers(exchanges: Iterable[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print each question with the model's answer below it."""
    console = console_for(stream or sys.stdout)
    for question, answer in exchanges:
        console.print(Text(f"> {in_one_line(question)}", style="bold"))
        console.print(Text(f"  {in_one_line(answer)}"))
