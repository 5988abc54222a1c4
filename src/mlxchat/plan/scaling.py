"""Scaling experiments: runs that double in length, and the predictions made from them. Pure.

- Rung: a run of a given time, with the model that the budget recipe chooses, or a given depth. Runs
of equal time would only compare models at one budget, which says nothing about a longer one.
- Law: a straight line fitted to the logarithms of FLOPs and of bits per byte at the end of each
run. It uses all rungs with at least `STEPS_THAT_COUNT` steps; picking only the best ones would
flatter the result. Evaluations during a run are not used: the learning rate has not decayed yet,
and a run that ended there would have done better.

The law has no irreducible loss: three to five runs cannot distinguish it from the slope, and it
differs from text to text. So the law is too optimistic far beyond the data, and is only used for up
to ten times the total time.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mlxchat.config.pretrain import LARGEST_DEPTH, PretrainConfig
from mlxchat.config.recipes import ENDLESS, Text
from mlxchat.config.units import LONGEST_DURATION, spell_duration
from mlxchat.errors import ConfigError
from mlxchat.plan.budget import budgeted_plan
from mlxchat.plan.memory import Resources

RUNGS = 4  # of a ladder without given depths
SHORTEST_RUNG = 20  # seconds: a shorter run does little but compile and evaluate
FEWEST_RUNGS = 3  # a line through two points always fits
STEPS_THAT_COUNT = (
    100  # at least: a run of fewer has learned how frequent the tokens are, and little else
)


class Rung(BaseModel):
    """A finished run of the experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str
    depth: int
    width: int
    vocab_size: int
    parameters: int
    steps: int
    tokens: int  # trained on
    flops: int
    seconds: float  # in all: measuring, compiling, evaluating and saving included
    bits_per_byte: float  # of the validation text, after the last step


class Law(NamedTuple):
    """Bits per byte as a power of the FLOPs spent: a line, ``log(bits) = height - exponent * x``.

    ``x`` is the logarithm of FLOPs, relative to the mean of the runs it was fitted to.
    """

    exponent: float
    exponent_error: float  # one standard error
    height: float
    center: float  # the mean logarithm of FLOPs
    spread: float  # the sum of squares of x
    residual: float  # the runs' standard deviation from the line
    runs: int

    @property
    def falls(self) -> bool:
        """Whether more FLOPs went with fewer bits per byte, without which it foretells nothing."""
        return self.exponent > 0

    def bits_per_byte(self, flops: float) -> float:
        """Return the bits per byte to expect of a run."""
        return math.exp(self.height - self.exponent * (math.log(flops) - self.center))

    def error(self, flops: float) -> float:
        """Return one standard error of `bits_per_byte` for a single run."""
        x = math.log(flops) - self.center
        relative = self.residual * math.sqrt(1 + 1 / self.runs + x * x / self.spread)
        return self.bits_per_byte(flops) * relative


class Prediction(BaseModel):
    """The bits per byte that a run is predicted to reach."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: str
    depth: int
    flops: float
    bits_per_byte: float
    error: float  # one standard error


# ==== The ladder =================================================================================


def parse_depths(text: str) -> tuple[int, ...]:
    """Return the depths in a list such as ``2,3,4``, the shallowest first.

    Raises:
        ConfigError: one is not a number, out of bounds or given twice, or there are too few.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        known = word.isascii() and word.isdecimal() and len(word) < 9
        if not (known and 1 <= int(word) <= LARGEST_DEPTH):
            raise ConfigError(
                f"`depths={text[:99]}`: {word[:99]!r} is not a depth of 1 to {LARGEST_DEPTH}.",
                "Write them as 2,3,4.",
            )
    depths = sorted(map(int, words))
    if twice := [a for a, b in pairwise(depths) if a == b]:
        raise ConfigError(
            f"`depths={text[:99]}` has depth {twice[0]} twice.", "Give each depth once."
        )
    if len(depths) < FEWEST_RUNGS:
        raise ConfigError(
            f"`depths={text[:99]}`: a scaling law needs at least {FEWEST_RUNGS} runs.",
            f"Give {FEWEST_RUNGS} depths or more.",
        )
    return tuple(depths)


def divided(budget: int, rungs: int) -> list[int]:
    """Return the seconds of each rung, the shortest first; together they are ``budget`` at most.

    >>> divided(900, 4)
    [60, 120, 240, 480]

    Raises:
        ConfigError: the shortest would be shorter than `SHORTEST_RUNG`.
    """
    parts = 2**rungs - 1
    least = parts * SHORTEST_RUNG
    if budget < least:
        longer = f"Use `budget={spell_duration(least)}` or more, or fewer `depths`."
        raise ConfigError(
            f"`budget={spell_duration(budget)}` is too short for {rungs} runs, each twice as long "
            f"as the one before: the first would have less than {SHORTEST_RUNG} s.",
            longer if least <= LONGEST_DURATION else "Use fewer `depths`.",
        )
    return [budget * 2**number // parts for number in range(rungs)]


# ==== The law ====================================================================================


def fitted_law(rungs: Sequence[Rung]) -> Law | None:
    """Fit the law by least squares; None for fewer than `FEWEST_RUNGS` with `STEPS_THAT_COUNT`."""
    rungs = [rung for rung in rungs if rung.steps >= STEPS_THAT_COUNT]
    if len({rung.flops for rung in rungs}) < FEWEST_RUNGS:
        return None
    xs = [math.log(rung.flops) for rung in rungs]
    ys = [math.log(rung.bits_per_byte) for rung in rungs]
    center, height = fmean(xs), fmean(ys)
    spread = sum((x - center) ** 2 for x in xs)
    slope = sum((x - center) * (y - height) for x, y in zip(xs, ys, strict=True)) / spread
    left = [y - height - slope * (x - center) for x, y in zip(xs, ys, strict=True)]
    residual = math.sqrt(sum(each**2 for each in left) / (len(rungs) - 2))
    error = residual / math.sqrt(spread)
    return Law(-slope, error, height, center, spread, residual, len(rungs))


def predict(
    law: Law,
    rungs: Sequence[Rung],
    config: PretrainConfig,
    resources: Resources,
    seconds: int,
    text: Text = ENDLESS,
) -> Prediction:
    """Return what one run of ``seconds`` would reach, at the speed of the longest rung.

    Its depth is the one that a time budget chooses at that speed.

    Args:
        law: fitted to the rungs.
        rungs: the ladder's runs.
        config: the settings that they share, without a depth.
        resources: the means of the machine.
        seconds: the budget of the run.
        text: how much there is.

    Raises:
        MlxchatError: no model can be trained in the memory.
    """
    longest = max(rungs, key=lambda rung: rung.seconds)
    speed = longest.flops / longest.seconds
    budget = spell_duration(seconds)
    chosen = budgeted_plan(
        config.model_copy(update={"budget": budget}),
        longest.vocab_size,
        resources,
        lambda: float(seconds),
        speed,
        lambda _: None,
        text=text,
    )
    flops = seconds * speed
    if chosen.num_iterations == chosen.most_steps:  # the text is too little for so long a run
        flops = min(flops, float(chosen.tokens * chosen.flops_per_token))
    return Prediction(
        budget=budget,
        depth=chosen.model.n_layer,
        flops=flops,
        bits_per_byte=law.bits_per_byte(flops),
        error=law.error(flops),
    )
