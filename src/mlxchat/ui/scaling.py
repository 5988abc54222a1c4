"""The output of `mlxchat scaling`: a table of the runs, a chart, and the law in sentences."""

import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mlxchat.errors import command
from mlxchat.home import Home
from mlxchat.plan.scaling import FEWEST_RUNGS, STEPS_THAT_COUNT, Law, Prediction, Rung
from mlxchat.ui.console import say, table
from mlxchat.ui.dashboard import labelled_curve
from mlxchat.ui.output import console_for
from mlxchat.ui.text import as_options

CHART_WIDTH, CHART_HEIGHT = 60, 8  # characters
ROUGH_RUNS = 4  # the most of which the line's two numbers leave hardly an error to measure


def ladder_in_json(
    rungs: Sequence[Rung], law: Law | None, foretold: Sequence[Prediction]
) -> dict[str, Any]:
    """Return all that `show_ladder` shows, as data; ``fit`` is None for too few runs."""
    fit = law and {
        "exponent": law.exponent,
        "exponent_error": law.exponent_error,
        "residual": law.residual,
    }
    return {
        "event": "scaling",
        "runs": [rung.model_dump() for rung in rungs],
        "fit": fit,
        "predictions": [prediction.model_dump() for prediction in foretold],
    }


def show_ladder(
    rungs: Sequence[Rung],
    law: Law | None,
    foretold: Sequence[Prediction],
    home: Home,
) -> None:
    """Print the runs, what follows from them, and what to do with them.

    Args:
        rungs: the runs, the shortest first.
        law: fitted to them; None for too few.
        foretold: what longer runs would reach, by that law.
        home: where the runs are.
    """
    say()
    table(
        ["depth", "width", "parameters", "steps", "tokens", "FLOPs", "minutes", "bits per byte"],
        [
            (
                rung.depth,
                rung.width,
                rung.parameters,
                rung.steps,
                rung.tokens,
                f"{rung.flops:.2e}",
                f"{rung.seconds / 60:.1f}",
                f"{rung.bits_per_byte:.4f}",
            )
            for rung in rungs
        ],
    )
    _show_chart(rungs)
    say()
    for line in (
        *_law_in_words(law),
        *map(_in_words, foretold),
        "",
        *_next(rungs, foretold, home),
    ):
        say(line)


def _show_chart(rungs: Sequence[Rung]) -> None:
    console = console_for(sys.stdout)
    points = sorted({math.log10(rung.flops): rung.bits_per_byte for rung in rungs}.items())
    width = min(CHART_WIDTH, console.width)
    title = "bits per byte by FLOPs"
    lines = labelled_curve(points, width, CHART_HEIGHT, title, lambda x: f"{10**x:.1e}")
    for line in ["", *lines]:
        console.print(line)


def _law_in_words(law: Law | None) -> Iterator[str]:
    if law is None:
        yield as_options(
            f"A scaling law needs at least {FEWEST_RUNGS} runs of {STEPS_THAT_COUNT} steps: give "
            "more `depths`, a longer `budget` or a smaller `total_batch_size`."
        )
        return
    if not law.falls:
        yield as_options(
            "More FLOPs did not help, so no prediction is possible: give a longer `budget`."
        )
        return
    left = 10**-law.exponent
    error = math.log(10) * left * law.exponent_error
    rough = ", which is a rough estimate from so few" if law.runs <= ROUGH_RUNS else ""
    yield (
        f"Bits per byte fall as FLOPs^-{law.exponent:.3f} ± {law.exponent_error:.3f}: ten times "
        f"the FLOPs lower them by {1 - left:.1%} ± {error:.1%}."
    )
    yield f"Each ± is one standard error, from {law.runs} runs{rough}."


def _in_words(prediction: Prediction) -> str:
    return (
        f"A single run of {prediction.budget}, at about depth {prediction.depth} "
        f"({prediction.flops:.1e} FLOPs): about {prediction.bits_per_byte:.3f} ± "
        f"{prediction.error:.3f} bits per byte."
    )


def _next(rungs: Sequence[Rung], foretold: Sequence[Prediction], home: Home) -> Iterator[str]:
    best = min(rungs, key=lambda rung: rung.bits_per_byte)
    for longest in foretold[-1:]:
        again = command("train", budget=longest.budget)
        yield f"Train longer, with your other options unchanged: {again}"
    yield f"Talk to the best model: {command('chat', model_tag=best.tag)}"
    folders = [path for rung in rungs for path in (home.runs / rung.tag, home.log(rung.tag).parent)]
    yield f"Delete the runs and their logs: rm -r {shlex.join(map(str, folders))}"
