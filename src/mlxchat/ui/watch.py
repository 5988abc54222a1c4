"""A screen that is drawn again and again, until q or Ctrl-C."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

RESIZE_SECONDS = 0.25  # after so long at most, the picture suits a new size of the terminal
Seen = TypeVar("Seen")

ENDING = (b"q", b"Q", b"\x04")  # the last is Ctrl-D


def watch(
    console: Console,
    look: Callable[[], Seen],
    draw: Callable[[Seen, int, int], RenderableType],
    interval: float,
    pressed: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Show pictures on the whole terminal, which is afterwards as it was.

    Args:
        look: finds out what there is to show, once every ``interval`` seconds.
        draw: makes a picture of that, given the console's columns and lines.
        pressed: waits so many seconds at most, and says whether to end.
        clock: seconds.
    """
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        ended = False
        while not ended:
            seen, looked = look(), clock()
            size = None
            while not ended and clock() - looked < interval:
                if console.size != size:
                    size = console.size
                    live.update(draw(seen, size.width, size.height), refresh=True)
                ended = pressed(max(0.0, min(RESIZE_SECONDS, looked + interval - clock())))


@contextmanager
def keyboard() -> Iterator[Callable[[float], bool]]:
    """What waits for a key that ends a `watch`, while keys come singly and are not shown.

    Without a terminal to read from, it only waits.
    """
    if not sys.stdin.isatty():
        yield _asleep
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: _key_within(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _asleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _key_within(descriptor: int, seconds: float) -> bool:
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return bool(ready) and os.read(descriptor, 1) in (*ENDING, b"")  # nothing: the terminal is gone
