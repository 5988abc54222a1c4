"""The parts that the commands of all stages share: leading a run, and supervising it."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import typer

from mlxchat.checkpoint import store
from mlxchat.cli.session import Show, Stop, staying_awake, watch_run
from mlxchat.cli.supervise import train_supervised
from mlxchat.config.run import RunConfig
from mlxchat.config.settings_file import MOST_SETTINGS
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.disk import read_regular
from mlxchat.errors import command
from mlxchat.home import Home, expanded
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
    home, meters = Home.from_environment(), list[Meter]()

    def begin(show: Show, meter: Meter, stop: Stop) -> Iterator[Event]:
        meters.append(meter)
        return start(config, home, show, meter, stop, fresh, world=world)

    try:
        with staying_awake(stay_awake, json):
            watch_run(begin, json)
    except typer.Exit:  # it was interrupted
        run, unfinished = home.run(config.tag), any(one.step != one.total_steps for one in meters)
        if unfinished and not json and store.steps(run):
            name = COMMAND_OF_STAGE[home.stage_of(run)]
            say(f"Or resume it with: {command(name, resume=run.name)}")
        raise


def supervise_this(run: Path, fresh: bool, stay_awake: bool, json: bool, *more: str) -> NoReturn:
    """Run this very command in a child process, which is restarted when it crashes.

    A file of settings is copied first: who edits it for the next run must not change this one.

    Args:
        run: the folder of the run's checkpoints.
        fresh, stay_awake, json: as the user gave them.
        more: arguments that the child gets in addition.

    Raises:
        typer.Exit: with the exit code of the last child.
    """
    arguments = [word for word in sys.argv[1:] if word not in ("--supervise", "--fresh")]
    with ExitStack() as stack:
        stack.enter_context(staying_awake(stay_awake, json))  # between two processes as well
        arguments = stack.enter_context(with_own_settings_file(arguments))
        code = train_supervised([*arguments, "--no-stay-awake", *more], run, fresh, json)
    raise typer.Exit(code)


@contextmanager
def with_own_settings_file(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield arguments in which the file of settings is a copy, which is removed at the end.

    Other hosts have no such copy: with ``--hosts`` the file stays the user's own.
    """
    option, joined = "--config", "--config="
    with ExitStack() as stack:
        words: list[str] = []
        for word in arguments:
            after_option = words[-1:] == [option]
            if after_option or word.startswith(joined):
                words = words[:-1] if after_option else words
                path = expanded(word if after_option else word.removeprefix(joined))
                if not any(other.startswith("--hosts") for other in arguments):
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlxchat-"))
                    copy = Path(folder) / path.name
                    copy.write_bytes(read_regular(path, MOST_SETTINGS))
                    path = copy
                word = f"{joined}{path}"
            words.append(word)
        yield words


def say_how_to_talk(run: Path) -> None:
    """Show the command that talks to a run's last step, or to its best if that is better."""
    from mlxchat.checkpoint.catalog import better_than_newest

    better = better_than_newest(run)
    named = {"model_tag": run.name, **({"step": better[0].step} if better else {})}
    say(f"Talk to it: {command('chat', **named)}")
