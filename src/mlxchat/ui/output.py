"""Streams for all output: they never raise, and text in them cannot control a terminal.

A reader that goes away (``| head``, a closed terminal) is no failure: the rest is discarded without
a word. Output that the system refuses (a full disk) is discarded as well, since hours of training
must not end for it, but the failure is remembered, so that the program can end with an error.

File names, rows of data and what a model says come from anywhere. `LiteralConsole` removes the
characters that control a terminal, so that no caller has to.
"""

import errno
import os
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mlxchat.ui.text import harmless

PIPE_WIDTH = 1000  # columns: lines in files and pipes are not wrapped

READER_LEFT = (errno.EPIPE, errno.ECONNRESET)  # of a pipe, of a socket
TERMINAL_GONE = (errno.EIO, errno.ENXIO)  # on a terminal; of a file, they say that its disk fails


class Output:
    """A text stream whose `write` and `flush` never raise.

    Attributes:
        discarding: whether the rest is discarded, since nobody reads it or the system refuses it.
        failure: the first error other than that of a reader that went away; None without one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()  # a terminal that is gone says that it is none
        self.discarding = False
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:
        """The encoding of the underlying stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        """The treatment of characters that the encoding lacks; `input` asks for it."""
        return "replace"

    def isatty(self) -> bool:
        """Return whether the underlying stream is a terminal, and still there."""
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
        self._attempt(lambda: self._stream.write(safe))
        return len(text)

    def flush(self) -> None:
        """Flush the underlying stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.discarding:
            return
        try:
            action()
        except OSError as error:
            self._discard_the_rest()
            gone = READER_LEFT + TERMINAL_GONE if self._terminal else READER_LEFT
            if error.errno not in gone:
                self.failure = error
        except ValueError:  # the stream was closed by its owner
            self.discarding = True

    def _discard_the_rest(self) -> None:
        """Send the rest to /dev/null, so that Python's last flush at exit succeeds."""
        self.discarding = True
        with suppress(OSError, ValueError):  # not every stream has a descriptor
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            self._stream.flush()  # what is buffered


class LiteralConsole(Console):
    """A rich console that takes text literally: it is no markup and cannot control the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does. Its own control sequences pass, those within text do not."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(harmless(text), style)

    def write(self, text: str) -> None:
        """Write text at once, neither wrapped nor followed by a newline."""
        self.file.write(harmless(text))
        self.file.flush()


def console_for(stream: TextIO) -> LiteralConsole:
    """Return a console that prints to a stream, and tolerates a reader that goes away."""
    terminal = stream.isatty()
    out = stream if isinstance(stream, Output) else Output(stream)
    width = None if terminal else PIPE_WIDTH
    known = {  # rich would take a 0 for the size
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES") or value.strip("0")
    }
    return LiteralConsole(
        file=cast(TextIO, out), force_terminal=terminal, width=width, _environ=known
    )


def is_discarded(stream: TextIO) -> bool:
    """Return whether what is written to a stream is discarded, so that there is no need for it."""
    return isinstance(stream, Output) and stream.discarding


@contextmanager
def standard_output() -> Iterator[tuple[Output, Output]]:
    """Make standard output and standard error `Output` streams within the context; yields them.

    They are flushed at its end. Streams that were closed when the program started discard all.
    """
    before = sys.stdout, sys.stderr
    nowhere = [open(os.devnull, "w") for stream in before if stream is None]  # noqa: SIM115, PTH123
    out, err = (Output(stream or nowhere.pop()) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def control_keys_hidden() -> Iterator[None]:
    """Keep the terminal from showing ^C within the context when Ctrl-C is pressed.

    It would move the cursor, so that a panel that is drawn again and again would leave a border
    behind. A process in the background must not touch the terminal: it would be stopped.
    """
    if not _has_keyboard():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    hidden = [*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]]
    _before_hiding.append(before)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, hidden)
    try:
        yield
    finally:
        show_control_keys()


_before_hiding: list[list[Any]] = []  # the terminal's settings, while `control_keys_hidden`


def show_control_keys() -> None:
    """Undo `control_keys_hidden`; for a process that ends at once, too."""
    while _before_hiding:
        before = _before_hiding.pop()
        with suppress(termios.error):  # the terminal may be gone
            if _has_keyboard():
                termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _has_keyboard() -> bool:
    """Return whether what is typed at a terminal comes to this process."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # it is closed, or the terminal is gone
        return False
