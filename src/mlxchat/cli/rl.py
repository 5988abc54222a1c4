"""The command `rl`."""

import sys
from typing import Annotated

import typer

from mlxchat.cli.options import First, Fresh, Json, StayAwake
from mlxchat.cli.ranks import (
    Hosts,
    RankCount,
    RankSums,
    RankTimeout,
    follow_run,
    joined,
    launch_if_asked,
)
from mlxchat.cli.session import staying_awake, watch_run
from mlxchat.cli.supervise import train_supervised
from mlxchat.config.ranks import RANK_PATIENCE
from mlxchat.config.rl import RlConfig
from mlxchat.errors import command
from mlxchat.home import Home
from mlxchat.ui.console import say


def rl_command(
    config: Annotated[
        RlConfig,
        First("task", "level", "source", "reward", "num_iterations", "model_tag"),
    ],
    fresh: Fresh = False,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise", help="Restart from the last checkpoint whenever the process crashes."
        ),
    ] = False,
    ranks: RankCount = 1,
    hosts: Hosts = None,
    rank_timeout: RankTimeout = RANK_PATIENCE,
    rank_sums: RankSums = "float32",
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train a model by rewards for what it answers right.

    To each question the model draws several answers; those that are better than the
    others become likelier. It learns where it answers 10 to 80% of the questions right
    already: with --task arithmetic, spelling or counting a level of difficulty is found
    at which it does. Watch the reward and pass@1, the share of held-out questions that
    one answer gets right; pass@8 counts a question if one of 8 answers does.

    Rewards of your own are a function in a file: --reward rewards.py:brief with

        def brief(prompt, completion, answer): return -len(completion) / 1000

    To resume from the newest checkpoint, repeat the same command.
    """
    home = Home.from_environment()
    if supervise:
        from mlxchat.train.rl import with_tuned_source

        config = with_tuned_source(config, home)
        arguments = [word for word in sys.argv[1:] if word not in ("--supervise", "--fresh")]
        with staying_awake(stay_awake, json):  # between two processes as well
            arguments += ["--no-stay-awake", "--source", str(config.source)]
            code = train_supervised(arguments, config.tag, fresh, json)
        raise typer.Exit(code)
    launch_if_asked(ranks, hosts, rank_timeout)
    from mlxchat.train.rl import Reinforcement, run_reinforcement, with_tuned_source

    world = joined(config, rank_timeout, rank_sums)
    if not world.leads:
        follow_run(Reinforcement, config, world, stay_awake)
        return
    config = with_tuned_source(config, home)
    with staying_awake(stay_awake, json):
        watch_run(
            lambda show, meter, stop: run_reinforcement(
                config, home, show, meter, stop, fresh, world=world
            ),
            json,
        )
    if not json:
        say(f"Talk to it: {command('chat', model_tag=config.tag)}")
