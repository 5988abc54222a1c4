"""The parts that the commands of all stages share: leading a run, and supervising it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import typer

from mlxchat.cli.session import Show, Stop, staying_awake, watch_run
from mlxchat.cli.supervise import train_supervised
from mlxchat.config.run import RunConfig
from mlxchat.errors import command
from mlxchat.home import Home
from mlxchat.telemetry.events import Event
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.console import say

if TYPE_CHECKING:
    from mlxchat.train.world import World


class StartRun(Protocol):
    """A function that starts a run of one stage, such as `mlxchat.train.sft.run_fine_tuning`."""

    def __call__(
        self,
        config: Any,
        home: Home,
        report: Show,
        meter: Meter,
        stop: Stop,
        fresh: bool,
        *,
        world: "World",
    ) -> Iterator[Event]:
        """Start the run, and return its events."""


def lead(
    start: StartRun,
    config: RunConfig,
    world: "World",
    *,
    fresh: bool,
    stay_awake: bool,
    json: bool,
) -> None:
    """Train in this terminal: show the run's events, keep a Mac awake, save on Ctrl-C."""
    home = Home.from_environment()
    with staying_awake(stay_awake, json):
        watch_run(
            lambda show, meter, stop: start(config, home, show, meter, stop, fresh, world=world),
            json,
        )


def supervise_this(run: Path, fresh: bool, stay_awake: bool, json: bool, *more: str) -> NoReturn:
    """Run this very command in a child process, which is restarted when it crashes.

    Args:
        run: the folder of the run's checkpoints.
        fresh, stay_awake, json: as the user gave them.
        more: arguments that the child gets in addition.

    Raises:
        typer.Exit: with the exit code of the last child.
    """
    arguments = [word for word in sys.argv[1:] if word not in ("--supervise", "--fresh")]
    with staying_awake(stay_awake, json):  # between two processes as well
        code = train_supervised([*arguments, "--no-stay-awake", *more], run, fresh, json)
    raise typer.Exit(code)


def say_how_to_talk(run: Path) -> None:
    """Show the command that talks to a run's last step, or to its best if that is better."""
    from mlxchat.checkpoint.catalog import better_than_newest

    better = better_than_newest(run)
    named = {"model_tag": run.name, **({"step": better[0].step} if better else {})}
    say(f"Talk to it: {command('chat', **named)}")
