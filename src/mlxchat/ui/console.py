"""Prints everything that the commands print: events as they come, tables, lines, errors.

A `Screen` shows events as the output allows: a live panel and bars on a terminal, plain lines in a
file or a pipe, JSON for programs. When the reader goes away (``| head``, a closed terminal), the
output ends but the work continues.
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

PIPE_WIDTH = 1000  # columns: lines in files and pipes are not wrapped


class QuietStream:
    """A text stream that discards its output once the reader has gone, and never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:
        """The encoding of the underlying stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the underlying stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the underlying file descriptor.

        Raises:
            OSError: there is none.
        """
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write text, with question marks for characters that the encoding lacks."""
        safe = text.encode(self.encoding, "replace").decode(self.encoding)
        self._unless_gone(lambda: self._stream.write(safe))
        return len(text)

    def flush(self) -> None:
        """Flush the underlying stream."""
        self._unless_gone(self._stream.flush)

    def _unless_gone(self, action: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            action()
        except (
            OSError,
            ValueError,
        ):  # a broken pipe, a lost terminal, a full disk; a closed stream
            self._gone = True
            self._discard_the_rest()

    def _discard_the_rest(self) -> None:
        """Send the rest to /dev/null, so that Python's last flush at exit succeeds."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def console_for(stream: TextIO) -> Console:
    """Return a rich console that takes text literally and tolerates a reader that goes away."""
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
    """Shows the events of a run, of downloads and of other tasks, as a context manager.

    Several threads may use it, as long as only one of them sends the events of the training.

    Args:
        json: show each event as a line of JSON, and nothing else.
        stream: where to write; standard output by default.
        console: a rich console to use instead of ``stream``.
        clock: returns seconds; what changes between events is drawn by it.
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
    """Print a line, by default to standard output; the terminal wraps it."""
    console_for(stream or sys.stdout).print(Text(text), soft_wrap=True)


def error(problem: str, remedy: str = "", stream: TextIO | None = None) -> None:
    """Print an error and, on a line of its own, its remedy, by default to standard error."""
    console = console_for(stream or sys.stderr)
    console.print(Text.assemble(("Error: ", "bold red"), as_options(problem)), soft_wrap=True)
    if remedy:
        console.print(Text(as_options(remedy)), soft_wrap=True)


def warning(text: str, stream: TextIO | None = None) -> None:
    """Print a warning, by default to standard error."""
    console = console_for(stream or sys.stderr)
    whole = not console.is_terminal  # on a terminal, rich wraps between words
    console.print(Text.assemble(("Warning: ", "bold yellow"), as_options(text)), soft_wrap=whole)


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
        drawn.add_row(*(Text(cell if isinstance(cell, str) else f"{cell:,}") for cell in row))
    console_for(stream or sys.stdout).print(drawn)


def answers(exchanges: Iterable[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print each question with the model's answer below it."""
    console = console_for(stream or sys.stdout)
    for question, answer in exchanges:
        console.print(Text(f"> {in_one_line(question)}", style="bold"))
        console.print(Text(f"  {in_one_line(answer)}"))
