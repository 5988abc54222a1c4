"""A ladder of models of rising depth: how it divides its time, and what it foretells. Pure.

- Division: each rung gets time in proportion to its parameters (matrices and head) times its FLOPs
  per token. At one speed all rungs then see as many tokens for each parameter, as in a series of
  models of one recipe, and a deeper rung is what the shallower ones become with more time. Equal
  times would compare depths at one budget, which says nothing of a longer one.
- Law: a straight line through the logarithms of FLOPs and of bits per byte at the end of each run.
  All rungs of `LEAST_STEPS` count; to pick the best would flatter the line. The evaluations on the
  way do not: the learning rate has not fallen yet, and a run that ended there would have done
  better.

A floor that no model can pass is not fitted: three to five runs cannot tell it from the slope, and
it differs from text to text. So the law promises too much far away, and is asked about ten times
the time at most.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mlxchat.config.pretrain import LARGEST_DEPTH, PretrainConfig
from mlxchat.config.units import spell_duration
from mlxchat.errors import ConfigError
from mlxchat.model.config import GPTConfig
from mlxchat.model.size import flops_per_token, scaling_parameters
from mlxchat.plan.plan import shape

LADDERS = {  # depths by backend, those of models that it can train within the hour
    "cpu": (2, 3, 4),
    "metal": (2, 3, 4, 6),
    "cuda": (4, 6, 8, 10),
}
SHORTEST_RUNG = 20  # seconds: a shorter run does little but compile and evaluate
FEWEST_RUNGS = 3  # a line through two points always fits
LEAST_STEPS = 100  # a run of fewer has learnt how frequent the tokens are, and little else


class Rung(BaseModel):
    """A run of the ladder that has ended."""

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

    ``x`` is the logarithm of FLOPs, from the mean of the runs that it was fitted to.
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
    """What a run is expected to reach that gets as many tokens for a parameter as the ladder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: str
    depth: int
    flops: float
    bits_per_byte: float
    error: float  # one standard error


# ==== Division ===================================================================================


def parse_depths(text: str) -> tuple[int, ...]:
    """Return the depths in a list such as ``2,3,4``, the shallowest first.

    Raises:
        ConfigError: one is not a number, out of bounds or given twice.
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
    return tuple(depths)


def shortest_ladder(models: Sequence[GPTConfig]) -> int:
    """Return the least budget of a ladder, in seconds."""
    weights = [_weight(model) for model in models]
    return math.ceil(SHORTEST_RUNG * sum(weights) / min(weights))


def rungs_that_fit(models: Sequence[GPTConfig], budget: int) -> Sequence[GPTConfig]:
    """Return the models without the deepest ones that ``budget`` seconds are too short for.

    At least `FEWEST_RUNGS` are kept.
    """
    for count in range(len(models), FEWEST_RUNGS, -1):
        if shortest_ladder(models[:count]) <= budget:
            return models[:count]
    return models[:FEWEST_RUNGS]


def divided(models: Sequence[GPTConfig], budget: int) -> list[int]:
    """Return the seconds of each model's run, which together are ``budget`` at most.

    Raises:
        ConfigError: the run of one would be shorter than `SHORTEST_RUNG`.
    """
    least = shortest_ladder(models)
    if budget < least:
        depths = ", ".join(str(model.n_layer) for model in models)
        fewer = ", or fewer `depths`" if len(models) > FEWEST_RUNGS else ""
        raise ConfigError(
            f"`budget={spell_duration(budget)}` is too short for "
            f"{'depths' if len(models) > 1 else 'depth'} {depths}: the shallowest would train for "
            f"less than {SHORTEST_RUNG} s.",
            f"Use `budget={spell_duration(least)}` or more{fewer}.",
        )
    weights = [_weight(model) for model in models]
    return [int(budget * weight / sum(weights)) for weight in weights]


def _weight(model: GPTConfig) -> int:
    """Return what training takes for each token that a parameter sees, in FLOPs."""
    return scaling_parameters(model) * flops_per_token(model)


# ==== Law ========================================================================================


def fitted_law(rungs: Sequence[Rung]) -> Law | None:
    """Fit the law by least squares; None for fewer than `FEWEST_RUNGS` runs of `LEAST_STEPS`."""
    rungs = [rung for rung in rungs if rung.steps >= LEAST_STEPS]
    if len(rungs) < FEWEST_RUNGS:
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


def predict(law: Law, rungs: Sequence[Rung], config: PretrainConfig, seconds: int) -> Prediction:
    """Return what one run of ``seconds`` would reach, at the speed of the deepest rung.

    Args:
        law: fitted to the rungs.
        rungs: the ladder's runs.
        config: the settings that they share.
        seconds: the budget of the run.
    """
    deepest = max(rungs, key=lambda rung: rung.depth)
    flops = seconds * deepest.flops / deepest.seconds

    def log_weight(depth: int) -> float:
        return math.log(_weight(shape(config, deepest.vocab_size, depth)))

    wanted = log_weight(deepest.depth) + math.log(flops / deepest.flops)
    off: dict[int, float] = {}  # by depth: how far its share is from the time that there is
    for depth in range(1, LARGEST_DEPTH + 1):
        with suppress(ConfigError):  # the heads cannot divide the width
            off[depth] = abs(log_weight(depth) - wanted)
    return Prediction(
        budget=spell_duration(seconds),
        depth=min(off, key=lambda depth: off[depth]),
        flops=flops,
        bits_per_byte=law.bits_per_byte(flops),
        error=law.error(flops),
    )
