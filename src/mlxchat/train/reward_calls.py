"""Calls of a reward function that a user wrote: whatever it does, there is a number or a fault.

The function runs in this process. A timer stops it after `LONGEST_CALL`, by an exception; what it
prints is kept from the terminal; a child process that it forks does not train as well.
"""

import io
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

LARGEST_REWARD = 1e6  # of a function, above 0 or below
LONGEST_CALL = 10.0  # seconds, after which a function is stopped
CALL_STOPPED_EVERY = 1.0  # seconds, after which one that goes on is stopped again
MOST_CALL_STOPS = 20  # after which it cannot be stopped
_SHOWN = 80  # characters of what a function returned or printed
_SHOWN_ERROR = 200  # characters of an exception


@dataclass(frozen=True)
class Fault:
    """The fault of a function that did not return a usable number.

    Attributes:
        kind: a short phrase, the same for similar faults.
        detail: a sentence about this one, to follow the function's name.
    """

    kind: str
    detail: str


def called_safely(
    call: Callable[[], object], give_up: Callable[[], None]
) -> tuple[float | Fault, str]:
    """Return what a call returns as a number, or its fault, and the beginning of what it printed.

    Args:
        call: calls the function.
        give_up: called if the function cannot be stopped, while it still runs; where this returns,
            the function goes on.
    """
    shown = sys.stdout, sys.stderr

    def give_up_with_output() -> None:
        redirected = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = shown
        give_up()
        sys.stdout, sys.stderr = redirected

    with users_code() as printed:
        result = _number_of(call, give_up_with_output)
    return result, printed.text


@contextmanager
def users_code() -> Iterator["PrintedText"]:
    """Run a user's code within the context: what it prints goes to the stream that this yields.

    A child process that is forked there and would leave the context ends instead. One that calls
    `os._exit`, as those of `multiprocessing` do, never leaves it.
    """
    process, printed = os.getpid(), PrintedText()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield printed
    finally:
        if os.getpid() != process:
            os._exit(1)


class PrintedText(io.TextIOWrapper):
    """A stream that keeps only the beginning of what is written to it.

    It has what standard output has, such as a ``buffer`` for bytes, but no file descriptor.
    """

    def __init__(self) -> None:
        self._beginning = _Beginning()
        super().__init__(self._beginning, "utf-8", errors="backslashreplace", write_through=True)

    @property
    def text(self) -> str:
        """The beginning."""
        return self._beginning.data.decode("utf-8", "replace")[:_SHOWN]


class _Beginning(io.BufferedIOBase):
    """Keeps as many bytes as `_SHOWN` characters may take."""

    name = "<printed>"

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data[: 4 * _SHOWN - len(self.data)])
        return len(data)


class _TookTooLongError(BaseException):
    """A BaseException, so that the user's function does not catch it by accident."""


def _number_of(call: Callable[[], object], give_up: Callable[[], None]) -> float | Fault:
    """Return what a call returns, if that is a number to learn from, or what it did instead."""
    try:
        with _limited(LONGEST_CALL, give_up):
            result = call()
            number = _as_number(result)
        if number is None:
            kind = type(result).__name__
            return Fault("returned no number", f"returned {_short(result)}, of type {kind}.")
    except _TookTooLongError:
        return Fault("took too long", f"took more than {LONGEST_CALL:g} s, and was stopped.")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (asyncio.CancelledError is no Exception)
        return Fault("raised an exception", f"raised {in_one_sentence(error)}.")
    if math.isnan(number):
        return Fault("returned no number", f"returned {number}.")
    if abs(number) > LARGEST_REWARD:
        bound = f"between -{LARGEST_REWARD:,.0f} and {LARGEST_REWARD:,.0f}"
        return Fault(
            "returned too large a number", f"returned {number:g}; a reward must be {bound}."
        )
    return number


def _as_number(result: Any) -> float | None:
    """Return a number of whatever library as a float; None for a text and what else is none."""
    if isinstance(result, str | bytes | bytearray):
        return None
    try:
        return float(result)
    except (TypeError, ValueError):
        return None
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if result > 0 else -math.inf


def _short(result: object) -> str:
    text = repr(result)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def in_one_sentence(error: BaseException) -> str:
    """Return the last line of a traceback, and the line of the user's file that it leads to."""
    last = " ".join(traceback.format_exception_only(error)[-1].split()).rstrip(".")
    if len(last) > _SHOWN_ERROR:
        last = f"{last[:_SHOWN_ERROR]}..."
    if isinstance(error, SyntaxError):
        return f"{last} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    of_user = [frame for frame in frames if Path(frame.filename).parent != _HERE]
    # The error may come from a library that the file uses.
    own = [frame.lineno for frame in of_user if frame.filename == of_user[0].filename]
    return f"{last} (line {own[-1]})" if own else last


_HERE = Path(__file__).parent


@contextmanager
def _limited(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Raise `_TookTooLongError` within the context after some time, in the main thread only.

    The user's code may catch that, so it is raised again and again; then ``give_up`` is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stops, over = 0, False

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stops
        if over:
            return
        stops += 1
        if stops > MOST_CALL_STOPS:
            give_up()
        raise _TookTooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, CALL_STOPPED_EVERY)
    try:
        try:
            yield
        finally:
            over = True  # the timer may go off until here, but not while it is taken away
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
