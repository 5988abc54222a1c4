"""The command `monitor`."""

import sys
from typing import Annotated

import typer

from mlxchat.home import Home
from mlxchat.ui.console import say_json
from mlxchat.ui.output import console_for

FILE_WIDTH = 100  # characters in a line, where the output is no terminal


def monitor_command(
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=0.2, max=3600, help="Seconds between updates. Default: 2."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for use by programs, and exit.")
    ] = False,
) -> None:
    """Watch memory, disk and all runs from another terminal while they train.

    Shows the machine's memory and memory pressure; each run's progress, loss curve, time left and
    checkpoints; and the memory of each mlxchat process.

    Runs write their state to MLXCHAT_HOME, so you also see runs on other machines that share this
    folder, and runs that were killed.

    Press q or Ctrl-C to stop watching; the runs continue.
    """
    if interval is not None and (once or json):
        raise typer.BadParameter("--interval cannot be combined with --once or --json.")
    from mlxchat.monitor.runs import Monitor, as_json
    from mlxchat.ui.monitor import keyboard, picture, watch

    monitor, console = Monitor(Home.from_environment()), console_for(sys.stdout)
    if json:
        say_json(as_json(monitor.snapshot()))
        return
    if once or not console.is_terminal or console.is_dumb_terminal:
        width = console.width if console.is_terminal else FILE_WIDTH
        console.print(picture(monitor.snapshot(), width=width))
        return
    interval = interval or 2.0
    footer = f" every {interval:g}s · q quits"
    with keyboard() as pressed:
        watch(
            console,
            monitor.snapshot,
            lambda seen, width, height: picture(seen, width=width, height=height, footer=footer),
            interval,
            pressed,
        )
