"""What `quickstart` says: what it does in plain words, and none of the settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.program import Program

from mlxchat.checkpoint import store
from mlxchat.cli import quickstart
from mlxchat.home import Home
from mlxchat.telemetry.events import Ended, Evaluated, Event, Noted, Started
from mlxchat.telemetry.meter import Meter

PLAN = Noted(0.0, "classic, learning rates 0.098 embedding")
WARNING = Noted(0.0, "The memory is full.")


def trained(config: Any, home: Any, show: Any, meter: Meter, *_: Any) -> Iterator[Event]:
    started = Started(0.0, config.tag, 0, 750, 2048, 10, None, "a chip", 1000)
    first, last = Evaluated(0.0, 0, 2.74, 3.5, 640, 1.0), Evaluated(0.0, 750, 0.21, 1, 640, 1.0)
    for event in (PLAN, started, PLAN, first, WARNING, last, Ended(0.0, 750, "finished")):
        meter.update(event)
        yield event


def finished(*_: Any) -> Iterator[Event]:
    yield Noted(0.0, "The run quickstart is finished.")


@pytest.fixture
def said(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """What the program says of a run, up to the chat."""

    def end(*_: object) -> None:
        raise typer.Exit

    run, *arguments = request.param
    monkeypatch.setattr("mlxchat.train.pretrain.run_pretraining", run)
    monkeypatch.setattr("mlxchat.train.sft.run_fine_tuning", run)
    monkeypatch.setattr(quickstart, "load_chosen", end)
    code, out, errors = Program(monkeypatch, capsys)("quickstart", *arguments)
    assert (code, errors) == (0, "")
    return out


@pytest.mark.parametrize("said", [(trained,)], indirect=True)
def test_each_part_is_explained_and_no_setting_is(said: str) -> None:
    assert said.index("Part 1 of 3: learning to write") < said.index("quickstart: step 0 of 750")
    assert "from 2.74 bits per byte at step 0 to 0.21 at step 750" in said
    assert "Part 2 of 3: learning to answer" in said
    assert PLAN.text not in said and WARNING.text in said


@pytest.mark.parametrize("said", [(finished,)], indirect=True)
def test_a_run_that_is_finished_is_said_to_be(said: str) -> None:
    assert said.count("The run quickstart is finished.") == 2
    assert "are skipped; --fresh starts over" in said


@pytest.mark.parametrize("said", [(trained, "--json")], indirect=True)
def test_programs_get_every_event_and_no_prose(said: str) -> None:
    assert said.count(PLAN.text) == 4
    assert all(line.startswith("{") for line in said.splitlines())


def test_a_second_quickstart_is_not_told_of_an_option_that_it_lacks(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.locked(Home(home).runs / "quickstart"):  # as another process would
        code, _, errors = Program(monkeypatch, capsys)("quickstart")
    assert code == 75
    assert "Another process is using the run quickstart." in errors
    assert "--model-tag" not in errors


def test_what_comes_next_fits_a_terminal_and_names_the_dataset_of_own_text() -> None:
    for command, purpose in quickstart.NEXT:
        assert len(f"  {command}") <= 80 and len(f"      {purpose}") <= 80
    [own] = [command for command, _ in quickstart.NEXT if "--from" in command]
    dataset = own.rsplit(maxsplit=1)[-1].removesuffix(".txt")
    [training] = [
        purpose for command, purpose in quickstart.NEXT if command.startswith("mlxchat train")
    ]
    assert f"--dataset {dataset}" in training
