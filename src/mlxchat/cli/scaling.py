"""The command `scaling`: a ladder of depths, and what a longer budget would buy."""

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

LONGER = (1, 10)  # times the budget, of one run: what to foretell

Shared = Annotated[
    PretrainConfig, Without({"depth", "budget", "num_iterations", "init_from", "model_tag"})
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
            help="Depths to train, such as 2,3,4. Default: those of 2,3,4 on a CPU, 2,3,4,6 on a "
            "Mac and 4,6,8,10 on CUDA that the budget suffices for.",
            show_default=False,
        ),
    ] = None,
    model_tag: Annotated[
        str, typer.Option(help="What the runs are called, before -d2, -d3 and so on.")
    ] = "scaling",
    fresh: Fresh = False,
    stay_awake: StayAwake = True,
    json: Json = False,
) -> None:
    """Train models of several depths, and say what a longer budget would buy.

    Each is trained as by train --depth --budget. The time is divided so that all
    see about as many tokens for each parameter of matrices and head: the deeper,
    the longer. A line through the logarithms of FLOPs and bits per byte then says
    what one run would reach in the same time, and in ten times as much, and how
    far that may be off. To resume, repeat the same command: runs that have ended
    are kept. The other options are those of train, and hold for every run.
    """
    from mlxchat.plan.scaling import fitted_law, parse_depths, predict
    from mlxchat.train.pretrain import run_pretraining
    from mlxchat.train.scaling import plan_ladder, trained_rung
    from mlxchat.ui.scaling import ladder_in_json, show_ladder

    home, seconds = Home.from_environment(), to_seconds(budget)
    listed = None if depths is None else parse_depths(depths)
    with exit_promptly(), Screen(json) as screen:
        runs = plan_ladder(config, listed, seconds, model_tag, home, screen.show, fresh)
    with staying_awake(stay_awake, json):
        for number, run in enumerate(runs, 1):
            _announce(f"Run {number} of {len(runs)}: {run.tag}, for {run.budget}.", json)
            watch_run(
                lambda show, meter, stop, run=run: run_pretraining(  # type: ignore[misc]
                    run, home, show, meter, stop, fresh
                ),
                json,
            )
    rungs = [trained_rung(run, home) for run in runs]
    law = fitted_law(rungs)
    foretold = []
    if law and law.falls:
        foretold = [predict(law, rungs, config, times * seconds) for times in LONGER]
    if json:
        say_json(ladder_in_json(rungs, law, foretold))
    else:
        show_ladder(rungs, law, foretold, home)


def _announce(text: str, json: bool) -> None:
    with Screen(json) as screen:
        screen.show(Noted(SYSTEM_CLOCK(), text))
