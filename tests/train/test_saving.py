"""A run that fails (NaN, missing or changed data) keeps its last good step."""

import math
from pathlib import Path
from typing import Any

import pytest
from support.runs import OWN, QUIET, diverging, logged, run, run_folder, shards
from support.saved_runs import trainer_fields

from mlxchat.checkpoint import store
from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.documents import Cursor
from mlxchat.data.shards import DATASETS, REVISION
from mlxchat.errors import DivergedError, MlxchatError
from mlxchat.home import Home
from mlxchat.runtime import mx
from mlxchat.telemetry import log as runlog
from mlxchat.telemetry.events import Stepped
from mlxchat.train import inputs
from mlxchat.train.divergence import NotFiniteError, check_finite
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.stage import read_trainer
from mlxchat.train.step import StepParts, compile_step

A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([math.nan, 1.0, 0.1], "The loss is nan in step 8"),
        ([math.inf, 1.0, 0.1], "The loss is inf in step 8"),
        ([3.0, math.nan, 0.1], "The gradient norm is nan in step 8"),
    ],
)
def test_a_loss_or_norm_that_is_not_finite_ends_the_run(
    metrics: list[float], said: str, tmp_path: Path
) -> None:
    config = QUIET.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    for _ in range(2):
        with pytest.raises(DivergedError) as raised:
            run(tmp_path, config, compile=diverging(8, metrics))
    assert said in raised.value.problem
    assert ", with the data read up to epoch 8, shard_00000.parquet, row " in raised.value.problem
    kept = run_folder(tmp_path).with_name("run.good1") / "step_000006"
    newest = run_folder(tmp_path) / "step_000006"
    assert str(newest) in raised.value.remedy and str(kept) in raised.value.remedy
    assert store.steps(run_folder(tmp_path)) == [3, 6]
    assert not kept.parent.with_name("run.good2").exists()  # the same step is not kept twice
    before = {path.name: path.read_bytes() for path in newest.iterdir()}
    run(tmp_path, config)  # it was but a bad day
    assert store.steps(run_folder(tmp_path)) == [9, 12]
    assert logged(tmp_path, "step") == list(range(1, 13))
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert read_trainer(kept).step == 6


def test_a_second_good_step_is_kept_beside_the_first(tmp_path: Path) -> None:
    config = QUIET.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    for step in (5, 8):
        with pytest.raises(DivergedError):
            run(tmp_path, config, compile=diverging(step, [math.nan, 1.0, 0.1]))
    kept = [run_folder(tmp_path).with_name(f"run.good{number}") for number in (1, 2)]
    assert [store.steps(run) for run in kept] == [[3], [6]]


def test_diverging_before_the_first_save_names_save_every(tmp_path: Path) -> None:
    config = QUIET.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    with pytest.raises(DivergedError, match="in step 2") as raised:
        run(tmp_path, config, compile=diverging(2, [math.nan, 1.0, 0.1]))
    assert "`save_every`" in raised.value.remedy
    assert store.steps(run_folder(tmp_path)) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    config = QUIET.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})

    def compiled(step: StepParts, stop: ShouldStop) -> Launch:
        launch = compile_step(step, stop)

        def launch_and_spoil(number: int) -> Pending:
            pending = launch(number)
            if number == 6:
                step.model.lm_head.weight = step.model.lm_head.weight * math.inf
            return pending

        return launch_and_spoil

    with pytest.raises(DivergedError, match=r"lm_head\.weight has numbers that are not finite in"):
        run(tmp_path, config, compile=compiled)
    assert store.steps(run_folder(tmp_path)) == [3]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_single_element_that_is_not_finite_is_found(number: float) -> None:
    arrays = {"fine": mx.ones((9, 9)), "bad": mx.where(mx.arange(9) == 4, number, 1.0)}
    with pytest.raises(NotFiniteError, match="bad has numbers"):
        check_finite(arrays, 1, Cursor())
    check_finite({"fine": mx.ones(9), "whole": mx.arange(3)}, 1, Cursor())


def test_progress_is_saved_when_a_validation_shard_is_gone(tmp_path: Path) -> None:
    data = shards(tmp_path / "data", 0, 1)
    config = QUIET.model_copy(update={"data_dir": data, "save_every": 0, "eval_every": 5})
    events = run_pretraining(config, Home(tmp_path), lambda _: None)
    with pytest.raises(MlxchatError, match=r"shard_00001\.parquet does not exist"):
        for event in events:
            if isinstance(event, Stepped) and event.step == 5:  # which is evaluated next
                (data / "shard_00001.parquet").rename(tmp_path / "gone")
    assert store.steps(run_folder(tmp_path)) == [5]
    (tmp_path / "gone").rename(data / "shard_00001.parquet")
    run(tmp_path, config)
    assert logged(tmp_path, "step") == list(range(1, 13))
    assert sorted(set(logged(tmp_path, "evaluation"))) == [0, 5, 10, 12]


def test_the_log_is_synced_before_a_step_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = QUIET.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    log, save, sync = Home(tmp_path).log("run"), store.save, runlog.sync
    synced: list[Path] = []
    lines = 0

    def syncing(path: Path) -> None:
        nonlocal lines
        synced.append(path)
        if path == log:
            lines = len(logged(tmp_path, "step"))
        sync(path)

    def saving(run: Path, step: int, *rest: Any) -> Path:
        assert lines == step and synced[-2:] == [log, log.parent]
        return save(run, step, *rest)

    monkeypatch.setattr(runlog, "sync", syncing)
    monkeypatch.setattr(store, "save", saving)
    run(tmp_path, config)
    assert len([path for path in synced if path in (log, log.parent)]) == 8


def test_a_run_resumes_only_with_data_of_its_revision(tmp_path: Path) -> None:
    data = shards(tmp_path / "data", 0, 1)
    config = QUIET.model_copy(update={"data_dir": data})
    (data / REVISION).write_text(f"{A}\n")
    run(tmp_path, config, stop_at=3)
    newest = store.latest(run_folder(tmp_path))
    assert newest is not None
    assert read_trainer(newest).revision == A
    (data / REVISION).write_text(f"{B}\n")
    with pytest.raises(MlxchatError) as raised:
        run(tmp_path, config)
    assert A in raised.value.problem and B in raised.value.problem
    assert "`model_tag`" in raised.value.remedy and "`fresh`" in raised.value.remedy
    with pytest.raises(MlxchatError, match=f"was started with revision {A}"):
        inputs.check_documents(config, Home(tmp_path), ["shard_00000.parquet"], A)
    (data / REVISION).write_text(f"{A}\n")
    run(tmp_path, config)


def test_shards_streamed_later_are_of_the_runs_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    config = OWN.model_copy(update={"streaming": True, "num_shards": 1})
    training, validation = DATASETS["fineweb-edu"].training(1), DATASETS["fineweb-edu"].validation
    fields = trainer_fields("classic") | {"data": [*training, validation], "revision": A}
    state = TrainerState[PretrainConfig].model_validate(fields)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    inputs.reopen_documents(config, home, lambda _: None, state).close()
    assert (home.data("fineweb-edu") / REVISION).read_text() == f"{A}\n"
    other = state.model_copy(update={"revision": B})
    with pytest.raises(MlxchatError, match=f"was started with revision {B}"):
        inputs.reopen_documents(config, home, lambda _: None, other)
