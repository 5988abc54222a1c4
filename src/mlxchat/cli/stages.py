"""The parts that the commands of all stages share: leading a run, and supervising it."""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import typer

from mlxchat.checkpoint import store
from mlxchat.cli.ranks import follow_run, joined, launch_if_asked
from mlxchat.cli.session import Show, Stop, staying_awake, watch_run
from mlxchat.cli.supervise import train_supervised
from mlxchat.config.ranks import SumDtype
from mlxchat.config.rl import RlConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.settings_file import MOST_SETTINGS
from mlxchat.config.sft import ConversationConfig
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.disk import read_regular
from mlxchat.errors import command
from mlxchat.home import Home, expanded
from mlxchat.telemetry.events import Event
from mlxchat.telemetry.meter import Meter
from mlxchat.ui.console import say

if TYPE_CHECKING:
    from mlxchat.train.stage import Stage
    from mlxchat.train.world import World

FromModel = TypeVar("FromModel", bound=ConversationConfig | RlConfig)  # settings that name a model


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


def lead_from_source(
    stage: "type[Stage[Any, Any]]",
    start: StartRun,
    with_source: Callable[[FromModel, Home], FromModel],
    config: FromModel,
    *,
    fresh: bool,
    supervise: bool,
    ranks: int,
    hosts: Path | None,
    rank_timeout: float,
    rank_sums: SumDtype,
    stay_awake: bool,
    json: bool,
) -> FromModel | None:
    """Train a run of a stage that begins with a model, as the options of its command say.

    Args:
        stage: the stage.
        start: starts a run of it.
        with_source: fills in the model to begin with, if the settings name none.
        config: the settings.

    Returns:
        The settings with that model; None on a rank that another one leads.
    """
    home = Home.from_environment()
    if supervise:
        config = with_source(config, home)
        run = home.stage(stage.name) / config.tag
        supervise_this(run, fresh, stay_awake, json, "--source", str(config.source))
    launch_if_asked(ranks, hosts, rank_timeout)
    world = joined(config, rank_timeout, rank_sums)
    if not world.leads:
        follow_run(stage, config, world, stay_awake)
        return None
    config = with_source(config, home)
    lead(start, config, world, fresh=fresh, stay_awake=stay_awake, json=json)
    return config


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
