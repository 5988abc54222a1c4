"""Summaries of runs: read from the newest checkpoint and the end of the log, and quickly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.run_homes import BEGAN, STEP_SECONDS, MadeRun, put_adapter, put_evaluation
from support.strange_files import STRANGE, put_strange

from mlxchat.config.stages import COMMAND_OF_STAGE, STAGE_SETTINGS
from mlxchat.errors import ConfigError, NotFound
from mlxchat.home import STAGE_FOLDERS, Home
from mlxchat.monitor.runs import Runs
from mlxchat.report import log_end
from mlxchat.report.log_end import read_events_of, read_log_end
from mlxchat.report.places import find_run
from mlxchat.report.runs import RunSummary, Summaries, beginning_with, reading_from
from mlxchat.telemetry.events import (
    Event,
    Replanned,
    Sampled,
    Started,
    event_from_json,
    event_to_json,
)
from mlxchat.train import STAGES

NOW = BEGAN + 1000.0


@pytest.fixture
def place(home: Path) -> Home:
    return Home(home)


def read(place: Home, lives: bool = False, now: float = NOW) -> dict[str, RunSummary]:
    found = Summaries(place, now, host="here", machine="here", lives=lambda _: lives).all()
    return {run.name: run for run in found}


def test_a_finished_run(place: Home) -> None:
    folder = MadeRun("fox").put(place)
    put_evaluation(place, "fox", 40)
    run = read(place)["fox"]
    assert (run.stage, run.state, run.step, run.total_steps) == ("pretraining", "finished", 40, 40)
    assert run.bits_per_byte == pytest.approx(1 + 1 / 41) and run.best == run.evaluations[-1]
    assert run.seconds == 40 * STEP_SECONDS and run.tokens == 40 * 1024
    assert run.when == BEGAN + 40 * STEP_SECONDS and run.began == BEGAN
    assert run.saved_steps == (30, 40)
    files = [path for path in place.root.rglob("*") if path.is_file() and ".lock" not in path.name]
    assert run.bytes == sum(path.stat().st_size for path in files)
    assert run.places.folder == folder and len(run.places.evaluations) == 2
    assert (run.model.layers, run.model.width, run.model.arch) == (2, 128, "classic")


def test_what_happened_since_the_newest_saved_step_is_read_from_the_log(place: Home) -> None:
    MadeRun("fox", steps=35, saved=(10,), ended=None).put(place)
    run = read(place)["fox"]
    assert (run.state, run.step, run.total_steps, run.seconds) == ("died", 35, 40, 70.0)
    assert [step for step, _ in run.evaluations] == [0, 10, 20, 30]
    assert read(place, lives=True)["fox"].state == "silent"
    assert read(place, lives=True, now=BEGAN + 71)["fox"].state == "running"


def test_states_are_those_of_the_monitor(place: Home) -> None:
    MadeRun("a", steps=20, saved=(20,), ended="interrupted").put(place)
    MadeRun("b", steps=20, saved=(20,), ended="failed").put(place)
    MadeRun("c", log=False).put(place)
    MadeRun("d", saved=(10,), log=False).put(place)
    put_step(place.runs / "copy", 3, quantized=True)
    runs = read(place)
    states = {name: run.state for name, run in runs.items()}
    assert states == {
        "a": "interrupted",
        "b": "failed",
        "c": "finished",
        "d": "interrupted",
        "copy": None,
    }
    assert runs["b"].failure == "The disk is full."
    MadeRun("e", steps=20, saved=(20,), ended=None).put(place)
    (place.root / "logs" / ".being-copied.unfinished").mkdir()
    for alive in (False, True):
        watched = Runs(place, "here", lambda _, alive=alive: alive, "here").read(NOW)
        found = {name: run.state for name, run in read(place, alive).items() if run.places.log}
        assert {run.tag: run.state for run in watched} == found
    assert runs["copy"].model.bits == 4 and runs["copy"].saved_steps == (3,)


def test_a_run_that_has_saved_nothing(place: Home) -> None:
    MadeRun("new", stage="fine-tuning", steps=3, saved=(), ended=None).put(place)
    (place.finetuned).mkdir(parents=True, exist_ok=True)
    assert read(place)["new"].stage is None
    (place.finetuned / ".new.lock").touch()
    run = read(place)["new"]
    assert (run.stage, run.step, run.total_steps, run.seconds) == ("fine-tuning", 3, 40, 6.0)
    assert run.saved_steps == () and run.places.folder is None
    assert run.evaluations[0] == (0, 2.0)  # before the first step


@pytest.mark.parametrize("damage", ["trainer", "status", "log", "future"])
def test_a_run_that_cannot_be_read_does_not_hide_the_others(place: Home, damage: str) -> None:
    MadeRun("good").put(place)
    folder = MadeRun("bad").put(place)
    log = place.log("bad")
    if damage == "trainer":
        (folder / "step_000040" / "trainer.json").write_text('{"stage": 5}')
    elif damage == "status":
        log.with_name("status.json").write_text("[")
    elif damage == "log":
        lines = log.read_text().splitlines()
        lines[-1] = lines[-1].replace('"step": 40', '"step": -1')
        log.write_text("\n".join(lines) + "\n")
    else:
        log.with_name("status.json").write_text(
            log.with_name("status.json").read_text().replace('"time": 17', '"time": 27')
        )
    runs = read(place)
    assert runs["good"].state == "finished"
    assert runs["bad"].state == "unreadable" and runs["bad"].fault
    assert runs["bad"].saved_steps == (30, 40)


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_files_in_place_of_a_log(place: Home, kind: str) -> None:
    MadeRun("fox").put(place)
    place.log("fox").unlink()
    put_strange(kind, place.log("fox"))
    assert read(place)["fox"].saved_steps == (30, 40)


def test_the_end_of_a_log_is_read_in_blocks_of_any_size(
    place: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    MadeRun("fox", steps=35, saved=(10,), resumed=(20,), ended=None).put(place)
    log = place.log("fox")
    whole = read_log_end(log, 10)
    assert (whole.step, whole.ending, whole.seconds, whole.whole) == (35, None, 50.0, True)
    with log.open("a") as file:
        file.write('{"event": "step", "time": 1')  # cut off by a kill
    for block in (1, 7, 100, 10**6):
        monkeypatch.setattr(log_end, "BLOCK_BYTES", block)
        assert read_log_end(log, 10) == whole
    part = read_log_end(log, 10, most=2000)
    assert not part.whole and part.seconds == pytest.approx(50.0)
    assert read_log_end(log, 0).whole
    log.write_bytes(b"")
    assert read_log_end(log, 0).step is None
    log.write_bytes(b"x" * 2**21)
    with pytest.raises(ValueError, match="a line of more than"):
        read_log_end(log, 0, most=2**21)


def test_the_last_start_or_end_of_a_log_decides(place: Home) -> None:
    MadeRun("fox", steps=40, saved=(40,), ended="interrupted").put(place)
    log = place.log("fox")
    started = next(event for event in read_events_of(log, Started) if isinstance(event, Started))
    with log.open("a") as file:
        file.write(f"{event_to_json(replace(started, step=40, total_steps=60))}\n")
    end = read_log_end(log, 40)
    assert (end.ending, end.step, end.total_steps) == (None, 40, 60)
    with log.open("a") as file:
        file.write(f"{event_to_json(Replanned(BEGAN, 40, 50, 60, '1h'))}\n")
    assert read_log_end(log, 40).total_steps == 50


def test_events_of_a_kind_are_found_without_parsing_the_others(place: Home) -> None:
    MadeRun("fox", resumed=(20,)).put(place)
    log = place.log("fox")
    found = read_events_of(log, Started, Sampled)
    assert [type(event).__name__ for event in found] == ["Started", "Sampled", "Started", "Sampled"]
    assert read_events_of(log.with_name("missing"), Started) == []


def test_the_runs_that_began_with_a_run(place: Home) -> None:
    fox = MadeRun("fox").put(place)
    MadeRun("fox-sft", stage="fine-tuning").put(place)
    MadeRun("next", settings={"init_from": "fox"}).put(place)
    MadeRun("other", settings={"dataset": "mine"}).put(place)
    put_adapter(place, "fox-lora", fox / "step_000040")
    runs = list(read(place).values())
    later = {run.name for run in beginning_with("fox", runs)}
    assert later == {"fox-sft", "next", "fox-lora"}
    assert [run.name for run in reading_from("mine", place.data("mine"), runs)] == ["other"]


def test_an_unknown_name_suggests_others(place: Home) -> None:
    with pytest.raises(NotFound) as none:
        find_run(place, "fox")
    assert "quickstart" in none.value.remedy
    MadeRun("fox-small").put(place)
    with pytest.raises(NotFound) as unlike:
        find_run(place, "fox-smal")
    assert unlike.value.remedy == "Did you mean fox-small?"
    MadeRun("fox-small", stage="fine-tuning").put(place)
    with pytest.raises(ConfigError, match="two runs called fox-small"):
        find_run(place, "fox-small")


def test_stages_have_their_settings() -> None:
    assert {name: stage.settings for name, stage in STAGES.items()} == STAGE_SETTINGS
    assert STAGE_SETTINGS.keys() == COMMAND_OF_STAGE.keys() == STAGE_FOLDERS.keys()


def test_only_the_end_of_a_log_is_read(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a home of hundreds of long runs is listed within a second."""
    MadeRun("long", settings={"num_iterations": 1000}, steps=1000, saved=(1000,)).put(place)
    read_of = list[Event]()

    def counted_event(line: bytes) -> Event:
        read_of.append(event_from_json(line))
        return read_of[-1]

    monkeypatch.setattr(log_end, "event_from_json", counted_event)
    assert read(place)["long"].state == "finished"
    assert 1 <= len(read_of) < 10


def test_evaluations_belong_to_the_run_whose_whole_name_they_have(place: Home) -> None:
    MadeRun("fox").put(place)
    MadeRun("fox_000001").put(place)
    put_evaluation(place, "fox", 40)
    put_evaluation(place, "fox_000001", 40)
    (place.base_evaluations / "notes.txt").write_text("mine")
    assert {name: len(run.places.evaluations) for name, run in read(place).items()} == {
        "fox": 2,
        "fox_000001": 2,
    }
    assert json.dumps([str(path) for path in read(place)["fox"].places.evaluations])
