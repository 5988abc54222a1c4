"""The compute multiplier, and what is said of runs that differ."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.logs import evaluated, pretraining, saved_run, started, stepped, write_log

from mlxchat.home import Home
from mlxchat.report.compare import compute_multiplier, flops_to_reach, same_validation
from mlxchat.report.facts import RunFacts, read_facts
from mlxchat.report.figures import compared_figures
from mlxchat.telemetry.events import event_to_json


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


def test_steps_after_the_last_evaluation_are_not_paid_for(home: Path) -> None:
    baseline = run(home, "a", {10: 2.0, 20: 1.5, 40: 1.0})
    run(home, "b", {10: 1.9, 20: 1.0})
    with Home(home).log("b").open("a") as log:
        log.writelines(f"{event_to_json(stepped(step, 3.0))}\n" for step in range(21, 40))
    other = read_facts(Home(home), "b")
    assert other.step == 39
    assert compute_multiplier(baseline, other) == (pytest.approx(2.0), "exactly")


def test_text_of_another_seed_is_another_text(home: Path) -> None:
    facts = [read_facts(Home(home), saved_run(home, name)) for name in ("classic", "modern")]
    assert same_validation(facts) is True
    trainer = facts[1].trainer
    assert trainer is not None
    settings = trainer.settings.model_copy(update={"dataset": "builtin", "seed": 7})
    first = trainer.settings.model_copy(update={"dataset": "builtin"})
    both = [
        replace(facts[1], trainer=trainer.model_copy(update={"settings": each}))
        for each in (first, settings)
    ]
    assert same_validation(both) is False


def test_different_text_has_no_multiplier_and_no_best(home: Path) -> None:
    """Neither has one stage against another, though both are in bits per byte."""
    base, tuned = (read_facts(Home(home), saved_run(home, name)) for name in ("classic", "sft"))
    longer = replace(base, name="longer", log=run(home, "c", {10: 1.5, 20: 0.9}).log)
    base, tuned = (
        replace(facts, log=run(home, facts.name + "2", {10: 2.0, 20: bits}).log)
        for facts, bits in ((base, 1.0), (tuned, 0.5))
    )
    assert same_validation([base, tuned]) is False
    assert compute_multiplier(base, tuned) is None
    assert compute_multiplier(base, longer) == (1.0, "at least")
    assert "<strong>0.9000" in compared_figures([base, longer])
    beside = compared_figures([base, longer, tuned])
    assert "<strong>" not in beside and "at least 1×" in beside
    assert "Not all bits per byte were measured on the same text" in beside


def test_between_evaluations_it_is_a_line_in_logarithms() -> None:
    needed, bound = flops_to_reach(np.sqrt(2.0), np.array([1e10, 1e12]), np.array([2.0, 1.0]))
    assert (needed, bound) == (pytest.approx(1e11), "exactly")


def test_without_evaluations_there_is_none(home: Path) -> None:
    write_log(home, "a", [started("a"), stepped(1, 3.0)])
    write_log(home, "b", pretraining("b"))
    first, second = (read_facts(Home(home), name) for name in "ab")
    assert compute_multiplier(first, second) is None
    assert compute_multiplier(second, first) is None
