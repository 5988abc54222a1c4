"""The figures of a run that are computed from its log."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.logs import started, stepped, write_log
from support.run_homes import BEGAN, MadeRun

from mlxchat.home import Home
from mlxchat.report.facts import read_facts
from mlxchat.report.page import Shown, page
from mlxchat.report.runs import summaries
from mlxchat.telemetry.events import Event


@pytest.fixture
def place(home: Path) -> Home:
    return Home(home)


def test_the_first_step_of_each_process_is_not_in_the_speed(home: Path) -> None:
    """It compiles."""
    events: list[Event] = [started("a")]
    for step in range(1, 41):
        first = step in (1, 21)
        events.append(stepped(step, 3.0, seconds=30.0 if first else 0.5))
        if step == 20:
            events.append(started("a", 20))
    write_log(home, "a", events)
    facts = read_facts(Home(home), "a")
    assert facts.tokens_per_second == 2048 / 0.5
    assert facts.seconds == 2 * 30 + 38 * 0.5
    assert facts.mfu == pytest.approx(2048 * 3_000_000 / 0.5 / 1e12)


def test_the_utilisation_is_that_of_each_machine_in_its_time(home: Path) -> None:
    """Half of the steps on one chip, half on another of ten times the speed, both at 60%."""
    of_step = 2048 * 3_000_000
    fast = replace(started("a", 50), peak_flops=10 * started("a").peak_flops)  # type: ignore[operator]
    events: list[Event] = [started("a")]
    events += [stepped(step, 3.0, seconds=of_step / 0.6e12) for step in range(1, 51)]
    events.append(fast)
    events += [stepped(step, 3.0, seconds=of_step / 6e12) for step in range(51, 101)]
    write_log(home, "a", events)
    assert read_facts(Home(home), "a").mfu == pytest.approx(0.6)
    events[51:51] = [replace(fast, peak_flops=None)]
    write_log(home, "b", [*events[:52], *events[53:]])
    assert read_facts(Home(home), "b").mfu is None


def test_a_model_that_no_run_has_trained_lacks_nothing(place: Home) -> None:
    """A quantized copy and an imported model have no log, no trainer and no state of a run."""
    MadeRun("fox").put(place)
    put_step(place.runs / "copy", 3, quantized=True)
    facts = read_facts(place, "copy")
    assert (facts.state, facts.faults, facts.trainer) == (None, (), None)
    said = page([Shown(facts)], BEGAN)
    assert "A model that was not trained by a run of this name." in said
    assert not any(word in said for word in ("last heard of", "cannot be", ">resumes", ">unknown"))
    beside = page([Shown(read_facts(place, "fox")), Shown(facts)], BEGAN)
    assert "copy has not ended" not in beside
    assert 'for="x-flops"' in beside
    assert '>finished</td><td class="n">model</td>' in beside


def test_the_state_of_a_run_without_its_log_is_that_of_its_newest_step(place: Home) -> None:
    MadeRun("fox", log=False).put(place)
    MadeRun("hen", log=False, steps=30, saved=(20, 30)).put(place)
    states = {name: read_facts(place, name).state for name in ("fox", "hen")}
    assert states == {"fox": "finished", "hen": "interrupted"}
    assert states == {run.name: run.state for run in summaries(place)}
    (place.runs / "hen/step_000030/trainer.json").write_text("{}")
    assert read_facts(place, "hen").state == "unreadable"
