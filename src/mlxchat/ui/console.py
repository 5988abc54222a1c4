"""Everything that the commands print: events as they come, tables, lines, errors.

A `Screen` shows events whatever the output is: a live panel and bars on a terminal, plain lines in
a file or a pipe, JSON for programs. A reader that goes away (``| head``, a closed terminal) ends
the showing, never the work.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlxchat.telemetry.events import Event
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.text import as_options, in_one_line
from mlxchat.ui.views import JsonView, LiveView, PlainView, View

PIPE_WIDTH = 1000  # columns: nothing is folded where nobody looks


class QuietStream:
    """A text stream that goes silent when its reader has gone, and never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:
        """Of the stream below."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor below; OSError where there is none."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write what the stream's encoding has letters for, question marks for the rest."""
        safe = text.encode(self.encoding, "replace").decode(self.encoding)
        self._unless_gone(lambda: self._stream.write(safe))
        return len(text)

    def flush(self) -> None:
        """Hand what is written to the system."""
        self._unless_gone(self._stream.flush)

    def _unless_gone(self, action: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError):  # a broken pipe, a lost terminal, a full disk; closed
            self._gone = True
            self._discard_the_rest()

    def _discard_the_rest(self) -> None:
        """Python flushes its streams once more when it ends: let that succeed, unseen."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def console_for(stream: TextIO) -> Console:
    """A rich console on a stream: nothing is markup, and a reader that goes away is no error."""
    terminal = stream.isatty()
    return Console(
        file=cast(TextIO, QuietStream(stream)),
        force_terminal=terminal,
        width=None if terminal else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


class Screen:
    """Shows the events of a run, of downloads and of other tasks; a context manager.

    Safe to use from several threads, as long as one of them sends the events of the training.

    Args:
        json: show each event as a line of JSON, and nothing else.
        stream: where to; standard output by default.
        console: a rich console to use in place of one on ``stream``.
        clock: seconds, for what moves between events.
    """

    def __init__(
        self,
        json: bool = False,
        stream: TextIO | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        console = console or console_for(stream or sys.stdout)
        self._meter = Meter()
        self._folds = True
        self._open = True
        self._view: View
        if json:
            self._view = JsonView(console.file)
        elif console.is_terminal and not console.is_dumb_terminal:
            self._view = LiveView(console, clock)
        else:
            self._view = PlainView(console.file)

    def follow(self, meter: Meter) -> None:
        """Show this meter, which the run itself folds before it yields an event.

        A resumed run's meter knows the steps before, which a new one would not.
        """
        self._meter, self._folds = meter, False

    def show(self, event: Event) -> None:
        """Show an event as it comes, until the context ends; never raises because of the output."""
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
    """Print a line, to standard output unless told otherwise; the terminal wraps it."""
    console_for(stream or sys.stdout).print(Text(text), soft_wrap=True)


def error(problem: str, remedy: str = "", stream: TextIO | None = None) -> None:
    """Print what is wrong and, on a line of its own, what to do, to standard error."""
    console = console_for(stream or sys.stderr)
    console.print(Text.assemble(("Error: ", "bold red"), as_options(problem)), soft_wrap=True)
    if remedy:
        console.print(Text(as_options(remedy)), soft_wrap=True)


def warning(text: str, stream: TextIO | None = None) -> None:
    """Print what is amiss though the work goes on, to standard error."""
    console = console_for(stream or sys.stderr)
    whole = not console.is_terminal  # where a line too long is folded between words
    console.print(Text.assemble(("Warning: ", "bold yellow"), as_options(text)), soft_wrap=whole)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | int | float]],
    stream: TextIO | None = None,
) -> None:
    """Print rows under their headings: text to the left, numbers to the right, none cut."""
    listed = [list(row) for row in rows]
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(listed) and not any(isinstance(row[index], str) for row in listed)
        drawn.add_column(
            Text(name),
            justify="right" if numeric else "left",
            no_wrap=numeric or index == 0,  # on a narrow terminal names stay whole, texts fold
            overflow="fold",
        )
    for row in listed:
        drawn.add_row(*(Text(cell if isinstance(cell, str) else f"{cell:,}") for cell in row))
    console_for(stream or sys.stdout).print(drawn)


def answers(exchanges: Iterable[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print questions, each with what the model answered below it."""
    console = console_for(stream or sys.stdout)
    for question, answer in exchanges:
        console.print(Text(f"> {in_one_line(question)}", style="bold"))
        console.print(Text(f"  {in_one_line(answer)}"))
