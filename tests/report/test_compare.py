"""The compute multiplier, and what is said of runs that differ."""

from pathlib import Path

import numpy as np
import pytest
from support.logs import evaluated, pretraining, started, stepped, write_log

from mlxchat.home import Home
from mlxchat.report.compare import compute_multiplier, flops_to_reach
from mlxchat.report.facts import RunFacts, read_facts


def run(home: Path, name: str, points: dict[int, float]) -> RunFacts:
    events = [started(name)]
    for step in range(1, max(points) + 1):
        events.append(stepped(step, 3.0))  # type: ignore[arg-type]
        if step in points:
            events.append(evaluated(step, points[step]))  # type: ignore[arg-type]
    write_log(home, name, events)
    return read_facts(Home(home), name)


def test_half_the_compute_for_the_same_is_two(home: Path) -> None:
    baseline = run(home, "a", {10: 2.0, 20: 1.5, 40: 1.0})
    found = compute_multiplier(baseline, run(home, "b", {10: 1.9, 20: 1.0}))
    assert found == (pytest.approx(2.0), "exactly")
    assert compute_multiplier(baseline, baseline) == (pytest.approx(1.0), "exactly")


def test_what_a_baseline_never_reached_is_a_bound(home: Path) -> None:
    baseline = run(home, "a", {10: 2.0, 40: 1.0})
    assert compute_multiplier(baseline, run(home, "b", {20: 0.9})) == (2.0, "at least")
    assert compute_multiplier(baseline, run(home, "c", {20: 2.5})) == (0.5, "at most")


def test_between_evaluations_it_is_a_line_in_logarithms() -> None:
    needed, bound = flops_to_reach(np.sqrt(2.0), np.array([1e10, 1e12]), np.array([2.0, 1.0]))
    assert (needed, bound) == (pytest.approx(1e11), "exactly")


def test_without_evaluations_there_is_none(home: Path) -> None:
    write_log(home, "a", [started("a"), stepped(1, 3.0)])
    write_log(home, "b", pretraining("b"))
    first, second = (read_facts(Home(home), name) for name in "ab")
    assert compute_multiplier(first, second) is None
    assert compute_multiplier(second, first) is None
