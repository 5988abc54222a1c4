"""A run that is watched from the command line: shown as it goes on, and ended by Ctrl-C.

Ctrl-C, SIGTERM and a terminal that is closed: while training, save and end; before, end soon.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType

import typer

from mlxchat.telemetry.events import Event, Noted, Started
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.console import Screen

SHOW_CURSOR = b"\x1b[?25h"
GRACE = 2.0  # seconds to tidy up in, where there is nothing to save


def ending_signals() -> list[signal.Signals]:
    """Those that ask a program to end; without SIGHUP where it is ignored, as nohup has it.

    A shell lets its background jobs ignore SIGINT: it counts all the same, to whoever sends it.
    """
    asking = [signal.SIGINT, signal.SIGTERM]
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return asking if ignored else [*asking, signal.SIGHUP]


@contextmanager
def ending_soon() -> Iterator[None]:
    """Within it, `ending_signals` end the process within `GRACE`, a second one at once.

    For work that has nothing to save, such as downloads: one that hangs is not waited for.
    """
    received = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            _end_at_once(number)
        timer = threading.Timer(GRACE, _end_at_once, [number])
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    handlers = {number: signal.signal(number, end) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Interrupts:
    """Within its context, remembers `ending_signals`; a second Ctrl-C ends the process at once.

    A thread hears of signals while the main one waits for the device, where Python's own handlers
    would have to wait too.

    Args:
        told: called, in that thread, when the first signal comes.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._number = 0

    def requested(self) -> bool:
        """Whether the work should come to an end."""
        return bool(self._number)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 0 without any."""
        return 128 + self._number if self._number else 0

    def __enter__(self) -> "Interrupts":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._handlers = {
            number: signal.signal(number, _leave_to_thread) for number in ending_signals()
        }
        self._wakeup = signal.set_wakeup_fd(self._write.fileno())
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._write.close()

    def _listen(self) -> None:
        with self._read:
            while received := self._read.recv(1):
                number = received[0]
                if number in self._handlers and not self._number:
                    self._number = number
                    self._told()
                elif number == signal.SIGINT:
                    _end_at_once(number)


def _end_at_once(number: int) -> None:
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), SHOW_CURSOR)
    os._exit(128 + number)


def _leave_to_thread(number: int, frame: object) -> None:
    """Python tells the thread only of signals that have a handler."""


INTERRUPTED = "Saving, then ending. Ctrl-C again ends at once, without saving."

Show = Callable[[Event], None]
Stop = Callable[[], bool]


def watch(begin: Callable[[Show, Meter, Stop], Iterator[Event]], json: bool) -> None:
    """Show a run's events; once it has started, Ctrl-C saves before it ends the program.

    Args:
        begin: the run, given what shows an event from elsewhere, the meter that folds its events,
            and what says whether to save and end.
        json: show JSON lines.
    """
    meter = Meter()
    with Screen(json) as screen, ExitStack() as stack, ExitStack() as before:
        screen.follow(meter)
        before.enter_context(ending_soon())
        interrupts = Interrupts(lambda: screen.show(Noted(time.time(), INTERRUPTED)))
        for event in begin(screen.show, meter, interrupts.requested):
            if isinstance(event, Started):
                before.close()
                stack.enter_context(interrupts)
            screen.show(event)
    if interrupts.requested():
        raise typer.Exit(interrupts.exit_code)
