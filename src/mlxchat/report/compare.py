"""Two or more runs against each other: the compute multiplier, and the settings that differ."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mlxchat.report.facts import RunFacts
from mlxchat.report.provenance import measured_on
from mlxchat.report.series import Values


class ComputeMultiplier(NamedTuple):
    """The compute that a baseline needs to be as good as another run, relative to that run's.

    Attributes:
        value: its FLOPs divided by those of the other run until its last evaluation; above 1 if
            that needs less.
        bound: whether the value is exact, or the baseline gets so far only with more FLOPs than it
            has had (``at least``), or has got there before its first evaluation (``at most``).
    """

    value: float
    bound: Literal["exactly", "at least", "at most"]


def compute_multiplier(baseline: RunFacts, other: RunFacts) -> ComputeMultiplier | None:
    """Return the compute multiplier of a run.

    None where bits per byte or FLOPs are not known, or were measured on different text.
    """
    points, last = flops_and_bits(baseline), other.last_evaluation
    if points is None or last is None or last[1] <= 0:
        return None
    if same_validation([baseline, other]) is False:
        return None
    step, target = last
    spent = other.flops_at(step)
    if not spent:
        return None
    needed, bound = flops_to_reach(target, *points)
    return ComputeMultiplier(needed / spent, bound)


def flops_and_bits(facts: RunFacts) -> tuple[Values, Values] | None:
    """Return the FLOPs and the bits per byte of a run's evaluations; None without any."""
    per_step = facts.flops_at(1.0)
    steps, bits = facts.log.evaluations.step, facts.bits_per_byte
    known = np.isfinite(bits) & (bits > 0) & (steps > 0)
    if not per_step or not known.any():
        return None
    return steps[known] * per_step, bits[known]


def flops_to_reach(
    target: float, flops: Values, bits: Values
) -> tuple[float, Literal["exactly", "at least", "at most"]]:
    """Return at how many FLOPs a curve first is as low as ``target``.

    Between two evaluations it is a line in the logarithms of both.

    >>> flops_to_reach(2.0, np.array([1.0, 100.0]), np.array([4.0, 1.0]))
    (10.0, 'exactly')
    >>> flops_to_reach(0.5, np.array([1.0, 100.0]), np.array([4.0, 1.0]))
    (100.0, 'at least')
    """
    reached = np.flatnonzero(bits <= target)
    if not len(reached):
        return float(flops[-1]), "at least"
    place = int(reached[0])
    if place == 0:
        return float(flops[0]), "exactly" if bits[0] == target else "at most"
    high, low = math.log(bits[place - 1]), math.log(bits[place])
    share = (high - math.log(target)) / (high - low)
    begin, end = math.log(flops[place - 1]), math.log(flops[place])
    return round(math.exp(begin + share * (end - begin)), 6), "exactly"


def same_validation(runs: Sequence[RunFacts]) -> bool | None:
    """Return whether runs are measured on the same text; None if that is not known.

    Bits per byte can be compared then, whatever the vocabulary. Those of two stages never are.
    """
    trainers = [facts.trainer for facts in runs if facts.trainer is not None]
    texts = {(t.stage, *measured_on(t.settings, t.data, t.fingerprints)) for t in trainers}
    stages = {facts.stage for facts in runs if facts.stage}
    if len(texts) > 1 or len(stages) > 1:
        return False
    return True if len(trainers) == len(runs) else None
