"""A run that is watched from the command line: shown as it goes on, and ended by Ctrl-C."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import typer

from mlxchat.cli.interrupts import Interrupts, ending_soon
from mlxchat.telemetry.events import Event, Noted, Started
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.console import Screen

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
