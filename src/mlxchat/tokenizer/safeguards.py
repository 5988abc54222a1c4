"""Protects from what tiktoken and rustbpe do badly: long runs of blanks, panics, and signals."""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlxchat.errors import DataError

LONG_RUN = 100_000  # blanks in a row; at a million, tiktoken and rustbpe run out of stack
# White space without line breaks, as in a set of a regular expression.
_BLANK = "\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Only from the first blank of a run: tried from each, a text of shorter runs would take minutes.
_LONG_BLANKS = re.compile(f"(?<![{_BLANK}])[{_BLANK}]{{{LONG_RUN},}}")

_ENDING = (signal.SIGINT, signal.SIGTERM)


def split_blanks(text: str) -> Iterator[tuple[str, bool]]:
    """Split a text around long runs of blanks; yield each part, and whether it is such a run.

    The split pattern cuts the text in the same places: a run of blanks (a line break is none) is
    one piece, but its last blank belongs to what follows. If a line break follows, the run is part
    of a longer piece, which the pattern finds without running out of stack.
    """
    start = 0
    for run in _LONG_BLANKS.finditer(text) if len(text) >= LONG_RUN else ():
        first, end = run.span()
        if text[end : end + 1] in ("\r", "\n"):
            continue
        if end < len(text):
            end -= 1
        yield text[start:first], False
        yield text[first:end], True
        start = end
    yield text[start:], False


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of tiktoken or rustbpe into an error.

    The class of a panic is no `Exception`, and no module exports it.

    Raises:
        DataError: one of them panicked.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"tiktoken or rustbpe cannot process a text or a tokenizer ({error}).",
            "Look for text without words, such as a million spaces in a row, and leave it out.",
        ) from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the context, let the system itself end the process at Ctrl-C or SIGTERM.

    Python cannot: rustbpe takes minutes to merge the pairs of a large text, and meanwhile runs no
    Python code and checks no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
