"""What `mlxchat monitor` does."""

import json as json_format
import sys

from mlxchat.home import Home
from mlxchat.monitor.runs import Monitor, as_json
from mlxchat.ui.console import console_for, say
from mlxchat.ui.monitor import keyboard, picture, watch

PIPE_WIDTH = 100  # characters of a line where no terminal says


def monitor(once: bool, json: bool, interval: float) -> None:
    """Show how things are: as JSON, once, or again and again on a terminal until q or Ctrl-C."""
    looking = Monitor(Home.from_environment())
    console = console_for(sys.stdout)
    if json:
        say(json_format.dumps(as_json(looking.look())))
        return
    if once or not console.is_terminal or console.is_dumb_terminal:
        width = console.width if console.is_terminal else PIPE_WIDTH
        console.print(picture(looking.look(), width=width))
        return
    footer = f" every {interval:g}s · q ends"
    with keyboard() as pressed:
        watch(
            console,
            looking.look,
            lambda seen, width, height: picture(seen, width=width, height=height, footer=footer),
            interval,
            pressed,
        )
