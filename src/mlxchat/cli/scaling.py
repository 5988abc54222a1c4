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
            help="Time for all runs together, such as 30m or 2h. If there is no "
            "tokenizer yet, it is trained first, in additional time.",
            metavar="TIME",
        ),
    ],
    depths: Annotated[
        str | None,
        typer.Option(
            help="Depths of the runs, such as 2,3,4; the deepest gets the longest run. "
            "Default: 4 runs, each with the depth that suits its time.",
            show_default=False,
            metavar="INT,INT,...",
        ),
    ] = None,
    model_tag: Annotated[
        str | None,
        typer.Option(
            help="Prefix of the runs' names, which end in their times. Default: scaling.",
            show_default=False,
            metavar="NAME",
        ),
    ] = None,
    fresh: Fresh = False,
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train a series of models on this machine, and predict what a longer budget would buy.

    Each run is planned like train --budget, with twice the time of the one before it. A line fitted
    to the logarithms of FLOPs and bits per byte then predicts what a single run would reach in the
    total time, and in ten times that, with error bars. To resume, repeat the same command: finished
    runs are kept. All other options work as in train and apply to every run.
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
