"""Running a training run at the terminal: its events are shown, and Ctrl-C saves before it ends.

Ctrl-C, SIGTERM and closing the terminal all ask the program to end. During training it saves first;
before the first step is done, when there is nothing new to save, it ends promptly.
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

from mlxchat.system import kept_awake
from mlxchat.telemetry.events import Ended, Event, Noted, Progressed, Report, Started, Stepped
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.status import note_interruption
from mlxchat.ui.console import Screen
from mlxchat.ui.output import show_control_keys

SHOW_CURSOR = b"\x1b[?25h"
GRACE = 1.5  # seconds to clean up in when there is nothing to save
AWAKE = (
    "This Mac stays awake while it trains, as long as its lid is open (--no-stay-awake turns this "
    "off)."
)
SAVING = "Saving before stopping. Press Ctrl-C again to stop at once, without saving."
NOTHING_YET = "Stopping. There is nothing new to save yet."
SAVED = "Stopping. Everything is saved."

Show = Callable[[Event], None]
Stop = Callable[[], bool]


def watch_run(start: Callable[[Show, Meter, Stop], Iterator[Event]], json: bool) -> Meter:
    """Show the events of a run; after its first step, Ctrl-C saves before it ends the program.

    Returns the meter of the run, which has not started if it was finished before.

    Args:
        start: starts the run and returns its events. Its arguments show an event from elsewhere,
            fold the run's events, and tell whether to save and end.
        json: whether to print JSON lines.
    """
    meter = Meter()
    said = NOTHING_YET

    def interrupted() -> None:
        screen.show(Noted(time.time(), said))
        if said == NOTHING_YET:  # a first evaluation or step may take minutes
            end_later(interrupts.exit_code - 128)

    with Screen(json) as screen, ExitStack() as stack, ExitStack() as before:
        screen.follow(meter)
        before.enter_context(exit_promptly())
        interrupts = Interrupts(interrupted)
        for event in start(screen.show, meter, interrupts.requested):
            if isinstance(event, Started):
                before.close()
                stack.enter_context(interrupts)
            if isinstance(event, Stepped | Ended):
                said = SAVING if isinstance(event, Stepped) else SAVED
            screen.show(event)
    if interrupts.requested():
        raise typer.Exit(interrupts.exit_code)
    return meter


@contextmanager
def staying_awake(wanted: bool, json: bool) -> Iterator[None]:
    """Keep a Mac awake within the context, if ``wanted``, and say so.

    Args:
        wanted: whether to do so; other machines are left alone in any case.
        json: whether to print JSON lines.
    """
    with ExitStack() as stack:
        if wanted and stack.enter_context(kept_awake()):
            with Screen(json) as screen:
                screen.show(Noted(time.time(), AWAKE))
        yield


def end_signals() -> list[signal.Signals]:
    """Return the signals that ask a program to end, without SIGHUP if it is ignored (nohup).

    A shell makes its background jobs ignore SIGINT, but whoever sends one means it, so it counts.
    """
    asking = [signal.SIGINT, signal.SIGTERM]
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return asking if ignored else [*asking, signal.SIGHUP]


@contextmanager
def exit_promptly() -> Iterator[None]:
    """Make `end_signals` end the process within `GRACE` seconds, and a second one at once.

    This is for work with nothing to save, such as downloads: one that hangs is not waited for.
    """
    received = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            exit_now(128 + number)
        end_later(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    handlers = {number: signal.signal(number, end) for number in end_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_later(number: int) -> None:
    """End the process as by a signal of that number in `GRACE` seconds, if it still runs."""
    timer = threading.Timer(GRACE, exit_now, [128 + number])
    timer.daemon = True
    timer.start()


class Interrupts:
    """Remembers `end_signals` within its context; a second Ctrl-C ends the process at once.

    A thread receives the signals while the main thread waits for the device; Python's own handlers
    would have to wait as well.

    Args:
        notify: called in that thread when the first signal arrives.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._number = 0

    def requested(self) -> bool:
        """Return whether the work should end."""
        return bool(self._number)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and 0 without any signal."""
        return 128 + self._number if self._number else 0

    def __enter__(self) -> "Interrupts":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._handlers = {
            number: signal.signal(number, _leave_to_thread) for number in end_signals()
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
                    self._notify()
                elif number == signal.SIGINT:
                    exit_now(128 + number)


def exit_now(code: int) -> None:
    """End the process at once with an exit code, without clean-up; the terminal is as before."""
    note_interruption()
    show_control_keys()
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), SHOW_CURSOR)
    os._exit(code)


def _leave_to_thread(number: int, frame: object) -> None:
    """Do nothing: Python notifies the thread only of signals that have a handler."""


def checksum_progress(report: Report) -> Callable[[int, int], None]:
    """Return a function that reports how many bytes of a model's files have been read."""
    return lambda done, total: report(Progressed(time.time(), "checksums", done, total, "bytes"))
