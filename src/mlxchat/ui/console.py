"""Prints everything that the commands print: events as they come, tables, lines, errors.

A `Screen` shows events as the output allows: a live panel and bars on a terminal, plain lines in a
file or a pipe, JSON for programs.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.table import Table
from rich.text import Text

from mlxchat.telemetry.clock import SYSTEM_CLOCK, Timer
from mlxchat.telemetry.events import Event, json_line
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.output import LiteralConsole, console_for
from mlxchat.ui.text import as_options, in_one_line
from mlxchat.ui.views import JsonView, LiveView, PlainView, View


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
        return self

    def __exit__(self, *exception: object) -> None:
        self._open = False
        self._view.close()


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print text, by default to standard output; the terminal wraps it."""
    console_for(stream or sys.stdout).print(Text(text), soft_wrap=True)


def say_json(value: object) -> None:
    """Print a value as a line of JSON, as `json_line` writes it, to standard output."""
    console_for(sys.stdout).write(f"{json_line(value)}\n")


def error(problem: str, remedy: str = "", stream: TextIO | None = None) -> None:
    """Print an error and, on a line of its own, its remedy, by default to standard error."""
    console = console_for(stream or sys.stderr)
    shown = Text.assemble(("Error: ", "bold red"), in_one_line(as_options(problem)))
    console.print(shown, soft_wrap=True)
    if remedy:
        console.print(Text(in_one_line(as_options(remedy))), soft_wrap=True)


def warning(text: str, stream: TextIO | None = None) -> None:
    """Print a warning, by default to standard error."""
    console = console_for(stream or sys.stderr)
    whole = not console.is_terminal  # on a terminal, rich wraps between words
    shown = Text.assemble(("Warning: ", "bold yellow"), in_one_line(as_options(text)))
    console.print(shown, soft_wrap=whole)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | int | float]],
    stream: TextIO | None = None,
) -> None:
    """Print a table: text left-aligned, numbers right-aligned, nothing shortened."""
    listed = [list(row) for row in rows]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(listed) and not any(isinstance(row[index], str) for row in listed)
        drawn.add_column(
            Text(name),
            justify="right" if numeric else "left",
            no_wrap=numeric or index == 0,  # on a narrow terminal, texts wrap but names do not
            overflow="fold",
        )
    for row in listed:
        texts = (in_one_line(cell) if isinstance(cell, str) else f"{cell:,}" for cell in row)
        drawn.add_row(*map(Text, texts))
    console_for(stream or sys.stdout).print(drawn)


def answers(exchanges: Iterable[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print each question with the model's answer below it."""
    console = console_for(stream or sys.stdout)
    for question, answer in exchanges:
        console.print(Text(f"> {in_one_line(question)}", style="bold"))
        console.print(Text(f"  {in_one_line(answer)}"))
