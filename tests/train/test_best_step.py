"""A run on little text keeps its best step, and says so if it ends worse."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.program import Program
from support.runs import OWN, few, logged, run, run_folder

from mlxchat.checkpoint import store
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.loader import Stopped
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Ended, Evaluated, Event, Noted
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train import evaluation
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.step import StepParts

BITS = {0: 9.0, 2: 4.0, 4: 2.0, 6: 3.0, 8: 2.5, 10: 3.5, 12: 4.0}  # per byte, by step
BEST = 4
SAVED = [BEST, 9, 12]


def idle(of: StepParts, stop: ShouldStop) -> Launch:
    """Steps that read their text and learn nothing."""

    def launch(number: int) -> Pending:
        if stop():
            raise Stopped
        *_, last = islice(of.batches, of.plan.accumulation)
        return Pending(number, mx.array([1.0, 0.02, 3.0]), last.state)

    return launch


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 20], 280).save(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    """Settings of a run of many epochs that learns its text by heart."""

    def evaluations(*arguments: Any) -> Iterator[Event]:
        step, clock = arguments[4:6]
        yield Evaluated(clock(), step, BITS[step], 2.0, 64, 0.1)

    monkeypatch.setattr(evaluation, "bits_per_byte", evaluations)
    data = few(tmp_path / "data", 0, 1, documents=300)
    return OWN.model_copy(
        update={"data_dir": data, "eval_every": 2, "tokenizer_dir": tokenizer, "vocab_size": None}
    )


def evaluated(home: Path) -> Mapping[int, bool]:
    """Return by step whether the log calls its evaluation the best so far."""
    events = map(json.loads, Home(home).log("run").read_text().splitlines())
    return {event["step"]: event["best"] for event in events if event["event"] == "evaluation"}


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Noted)]


def test_the_best_step_is_saved_and_kept_and_named_at_the_end(
    tmp_path: Path, config: PretrainConfig
) -> None:
    events = run(tmp_path, config, compile=idle)
    assert logged(tmp_path, "saved") == [2, 3, 4, 6, 9, 12]  # 2 and 4 as they are the best so far
    assert store.steps(run_folder(tmp_path)) == SAVED
    assert evaluated(tmp_path) == {step: step <= BEST for step in BITS}
    assert isinstance(events[-1], Ended)
    assert notes(events)[-1] == (
        "Step 4 is better than the last one (2.0000 bits per byte; step 12 has 4.0000), so its "
        "checkpoint is kept. To use it: mlxchat chat --model-tag run --step 4. sft and eval chat "
        "accept `step` too."
    )


@pytest.mark.parametrize("stop_at", [3, 4, 8])
def test_an_interrupted_run_keeps_the_same_best_step(
    tmp_path: Path, config: PretrainConfig, stop_at: int
) -> None:
    config = config.model_copy(update={"keep": 1})
    interrupted = run(tmp_path, config, stop_at, idle)
    assert not any("is better than the last one" in note for note in notes(interrupted))
    assert len(store.steps(run_folder(tmp_path))) <= 2
    events = run(tmp_path, config, compile=idle)
    assert store.steps(run_folder(tmp_path)) == [BEST, 12]
    assert "Step 4 is better than the last one" in notes(events)[-1]
    assert [step for step, best in evaluated(tmp_path).items() if best] == [0, 2, 4]


def test_a_run_that_ends_hardly_worse_does_not_say_so(
    tmp_path: Path, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BITS, 12, 2.005)
    events = run(tmp_path, config, compile=idle)
    assert not any("better" in note for note in notes(events))
    assert store.steps(run_folder(tmp_path)) == SAVED


def test_only_the_last_step_is_saved_where_that_is_asked_for(
    tmp_path: Path, config: PretrainConfig
) -> None:
    run(tmp_path, config.model_copy(update={"save_every": 0}), compile=idle)
    assert store.steps(run_folder(tmp_path)) == [12]


def test_train_shows_how_to_talk_to_the_best_step(
    tmp_path: Path,
    home: Path,
    config: PretrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = config.model_dump(mode="json", exclude_defaults=True)
    words = [
        word
        for name, value in given.items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    code, said, _ = Program(monkeypatch, capsys, "train")(*words)
    assert code == 0
    assert said.splitlines()[-1] == "Talk to it: mlxchat chat --model-tag run --step 4"
    assert "(best: 2.0000, step 4)" in said
