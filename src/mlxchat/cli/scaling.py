"""The command `scaling`: a ladder of runs, and what a longer budget would buy."""

from typing import Annotated

import typer

from mlxchat.cli.options import Fresh, Json, StayAwake, Without
from mlxchat.cli.session import exit_promptly, staying_awake, watch_run
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.units import to_seconds
from mlxchat.home import Home
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen, say_json

LONGER = (1, 10)  # times the budget, for one run: what to foretell

Shared = Annotated[
    PretrainConfig, Without({"depth", "budget", "num_iterations", "init_from", "lora", "model_tag"})
]


def scaling_command(
    config: Shared,
    budget: Annotated[
        str,
        typer.Option(
            help="Time for all runs together, such as 30m or 2h. A tokenizer, if there is none "
            "yet, is trained before."
        ),
    ],
    depths: Annotated[
        str | None,
        typer.Option(
            help="Depths of the runs, such as 2,3,4, the deepest for the longest. Default: 4 runs, "
            "whose depths their times choose.",
            show_default=False,
        ),
    ] = None,
    model_tag: Annotated[
        str | None,
        typer.Option(
            help="What the runs' names begin with, before their times. Default: scaling.",
            show_default=False,
        ),
    ] = None,
    fresh: Fresh = False,
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train a ladder of models here, and say what a longer budget would buy.

    Each run is what train --budget makes of its time, and has twice the time of
    the one before. A line through the logarithms of FLOPs and bits per byte then
    says what one run would reach in the time of all, and in ten times as much,
    and how far that may be off. To resume, repeat the same command: runs that
    have ended are kept. The other options are those of train, for every run.
    """
    from mlxchat.plan.scaling import fitted_law, parse_depths
    from mlxchat.train.scaling import plan_ladder, predictions, trained_rung
    from mlxchat.ui.scaling import ladder_in_json, show_ladder

    home = Home.from_environment()
    listed = None if depths is None else parse_depths(depths)
    with exit_promptly(), Screen(json) as screen:
        runs = plan_ladder(config, listed, home, screen.show, fresh)
    with staying_awake(stay_awake, json):
        for number, run in enumerate(runs, 1):
            with Screen(json) as screen:
                text = f"Run {number} of {len(runs)}: {run.tag}, for {run.budget}."
                screen.show(Noted(SYSTEM_CLOCK(), text))
            _train(run, home, fresh, json)
    rungs = [trained_rung(run, home) for run in runs]
    law = fitted_law(rungs)
    foretold = predictions(
        law, rungs, config, [times * to_seconds(budget) for times in LONGER], home
    )
    if json:
        say_json(ladder_in_json(rungs, law, foretold))
    else:
        show_ladder(rungs, law, foretold, home)


def _train(run: PretrainConfig, home: Home, fresh: bool, json: bool) -> None:
    from mlxchat.train.pretrain import run_pretraining

    watch_run(lambda show, meter, stop: run_pretraining(run, home, show, meter, stop, fresh), json)
