"""The division of a ladder's time by hand, and its law against numpy and a law that is known."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import ConfigError
from mlxchat.plan.memory import Resources
from mlxchat.plan.scaling import (
    Rung,
    divided,
    fitted_law,
    parse_depths,
    predict,
)

CONFIG = PretrainConfig(budget="1h")
RESOURCES = Resources(64 * 2**30, 4, "none", 1024)
VOCABULARY = 4096


def rung(
    flops: float, bits: float, depth: int = 2, seconds: float = 60.0, steps: int = 100
) -> Rung:
    return Rung(
        tag=f"scaling-d{depth}",
        depth=depth,
        width=64 * depth,
        vocab_size=VOCABULARY,
        parameters=1,
        steps=steps,
        tokens=1,
        flops=int(flops),
        seconds=seconds,
        bits_per_byte=bits,
    )


def noisy(scale: float) -> list[Rung]:
    """Four runs about the law of 30 * FLOPs^-0.08."""
    noise = np.random.default_rng(0).normal(size=4)
    flops = [1e12, 1e13, 5e13, 4e14]
    return [rung(c, 30 * c**-0.08 * math.exp(scale * e)) for c, e in zip(flops, noise, strict=True)]


def logarithms(rungs: Sequence[Rung]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(math.log(each.flops), math.log(each.bits_per_byte)) for each in rungs]
    x, y = np.array(pairs).T
    return x, y


def test_each_run_has_twice_the_time_of_the_one_before() -> None:
    assert divided(1000, 3) == [142, 285, 571]
    assert divided(90, 1) == [90]
    assert divided(60, 2) == [20, 40]


def test_the_first_run_has_twenty_seconds_at_least() -> None:
    with pytest.raises(ConfigError, match="`budget=4m59s` is too short for 4 runs") as error:
        divided(299, 4)
    assert error.value.remedy == "Use `budget=5m` or more, or fewer `depths`."
    assert divided(300, 4)[0] == 20
    with pytest.raises(ConfigError) as error:
        divided(300, 64)
    assert error.value.remedy == "Use fewer `depths`."


def test_depths_are_sorted() -> None:
    assert parse_depths("4, 2,3") == (2, 3, 4)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is not a depth"),
        ("2,,3", "'' is not a depth"),
        ("2,three", "'three' is not a depth of 1 to 64"),
        ("-2,3", "'-2' is not"),
        ("0,3", "'0' is not"),
        ("2,65", "'65' is not"),
        ("2,3.5", "'3.5' is not"),
        ("2,٣", "is not a depth"),
        ("9" * 5000, "is not a depth"),
        ("3,2,3", "depth 3 twice"),
    ],
)
def test_depths_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        parse_depths(text)
    assert len(error.value.problem) < 300


def test_the_law_recovers_a_power_of_the_flops() -> None:
    law = fitted_law(noisy(0.0))
    assert law is not None
    assert law.falls
    assert law.exponent == pytest.approx(0.08, abs=1e-9)
    assert law.exponent_error == pytest.approx(0, abs=1e-9)
    assert law.bits_per_byte(1e16) == pytest.approx(30 * 1e16**-0.08)


def test_the_law_and_its_errors_are_those_of_numpy() -> None:
    rungs = noisy(0.03)
    law, (x, y) = fitted_law(rungs), logarithms(rungs)
    assert law is not None
    line, covariance = np.polyfit(x, y, 1, cov=True)
    assert law.exponent == pytest.approx(-line[0])
    assert law.exponent_error == pytest.approx(math.sqrt(covariance[0, 0]))

    far = np.array([math.log(1e16), 1.0])
    variance = np.sum((y - np.polyval(line, x)) ** 2) / (len(x) - 2)
    expected = math.exp(far @ line)
    assert law.bits_per_byte(1e16) == pytest.approx(expected)
    of_a_run = expected * math.sqrt(far @ covariance @ far + variance)
    assert law.error(1e16) == pytest.approx(of_a_run)


def test_the_error_grows_with_the_noise_and_with_the_distance() -> None:
    laws = [law for scale in (0.01, 0.02, 0.04) if (law := fitted_law(noisy(scale)))]
    for less, more in pairwise(laws):
        assert more.residual == pytest.approx(2 * less.residual)
        assert more.exponent_error == pytest.approx(2 * less.exponent_error)
    relative = [laws[0].error(c) / laws[0].bits_per_byte(c) for c in (1e14, 1e15, 1e17)]
    assert relative == sorted(relative)


def test_two_runs_have_no_law() -> None:
    assert fitted_law(noisy(0.0)[:2]) is None
    assert fitted_law([rung(1e12, 2.0)] * 3) is None


def test_runs_of_few_steps_do_not_count() -> None:
    short = rung(1e11, 2.9, steps=99)
    assert fitted_law([short, *noisy(0.02)]) == fitted_law(noisy(0.02))
    assert fitted_law([short, *noisy(0.02)[:2]]) is None


def test_a_law_that_rises_foretells_nothing() -> None:
    law = fitted_law([rung(1e12, 1.5), rung(1e13, 1.6), rung(1e14, 1.8)])
    assert law is not None
    assert not law.falls


def test_a_longer_run_has_the_speed_of_the_longest_and_the_depth_of_its_budget() -> None:
    rungs = [rung(1e12, 2.0, 2, 50), rung(3e12, 1.7, 2, 100), rung(1e13, 1.4, 2, 200)]
    law = fitted_law(rungs)
    assert law is not None
    same, longer, longest = (
        predict(law, rungs, CONFIG, RESOURCES, seconds) for seconds in (200, 2000, 10**6)
    )
    assert same.budget == "3m20s"
    assert same.flops == pytest.approx(1e13)
    assert longer.flops == pytest.approx(1e14)
    assert longer.bits_per_byte == pytest.approx(law.bits_per_byte(1e14))
    assert longer.error == pytest.approx(law.error(1e14))
    assert longer.error > same.error
    # 90% of 10^6 s at 5e10 FLOP/s train 300 million tokens at depth 7, and a twelfth of them is
    # more than its 19 million parameters; at depth 8, 210 million and 27 million parameters.
    assert (same.depth, longest.depth) == (2, 7)
