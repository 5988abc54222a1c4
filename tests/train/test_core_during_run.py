"""CORE during a run: measured, kept, cut short, and no reason to learn anything else."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from support.core_bundle import EXAMPLES, MADE, made_bundle
from support.models import network
from support.runs import (
    CONFIG,
    assert_same,
    final,
    logged,
    run,
    run_folder,
)

import mlxchat
from mlxchat.checkpoint import layout
from mlxchat.config.core import LEAST_PER_TASK
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import DataError, NotFound
from mlxchat.evaluate import core_examples
from mlxchat.evaluate.core import CoreResult, core_scores, measure_core
from mlxchat.evaluate.core_bundle import Bundle
from mlxchat.evaluate.core_examples import CoreExamples, read_items
from mlxchat.evaluate.core_kept import Verdicts
from mlxchat.evaluate.core_tasks import CORE_TASKS
from mlxchat.home import Home
from mlxchat.interop.exporters.card import Usage, card
from mlxchat.interop.programs import PROGRAMS
from mlxchat.plan.plan import Plan
from mlxchat.runtime import mx
from mlxchat.telemetry.events import CoreMeasured, Ended, Event, Noted, Progressed, Saved
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.train import core as train_core
from mlxchat.train.core import check_core
from mlxchat.train.ranks import Leader, RankBatches
from mlxchat.train.stage import history_of, read_trainer
from mlxchat.train.world import ALONE, Act, World


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of three tasks, which count as all."""
    monkeypatch.setattr(train_core, "CORE_TASKS", MADE)
    return made_bundle(tmp_path / "made")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["The cow saw the calf because rain fell many times. " * 9], 280).save(folder)
    return folder


Measuring = Callable[..., PretrainConfig]


@pytest.fixture
def measuring(bundle: Path, tokenizer: Path) -> Measuring:
    """Settings of a run that measures CORE, and of what is given besides."""

    def settings(**given: object) -> PretrainConfig:
        core = {"core_every": 6, "core_bundle": bundle, "core_max_per_task": 12}
        quiet = {"eval_every": 0, "sample_every": 0, "save_every": 0, "tokenizer_dir": tokenizer}
        quiet["vocab_size"] = None
        return CONFIG.model_copy(update={**quiet, **core, **given})

    return settings


def measured(events: list[Event]) -> list[CoreMeasured]:
    return [event for event in events if isinstance(event, CoreMeasured)]


def test_core_is_measured_logged_and_kept(
    tmp_path: Path, bundle: Path, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = core_examples.encode_examples, []

    def counted(task, items, indices, tokenizer):  # type: ignore[no-untyped-def]
        for example in encode(task, items, indices, tokenizer):
            encoded.append(example)
            yield example

    monkeypatch.setattr(core_examples, "encode_examples", counted)
    events = run(tmp_path, measuring())
    assert len(encoded) == 3 * 12  # once for both
    found = measured(events)
    assert [event.step for event in found] == [6, 12] == logged(tmp_path, "core")
    bars = [event for event in events if isinstance(event, Progressed)]
    assert {bar.task for bar in bars} == {"CORE"} and bars[-1].done == bars[-1].total

    # As the saved model's, measured by itself.
    folder = run_folder(tmp_path) / "step_000012"
    saved = layout.read_model(folder, mx.float32)
    examples, verdicts = (
        CoreExamples(read_items(Bundle(bundle), MADE, 12), saved.tokenizer),
        Verdicts(),
    )
    list(measure_core(saved.model, examples, verdicts))
    expected = CoreResult(core_scores(examples, verdicts), 12)
    last = found[-1]
    assert (last.core, last.error, last.max_per_task) == (expected.core, expected.error, 12)
    assert last.centered == {score.task: score.centered for score in expected.scores}

    state = read_trainer(folder)
    assert [point.step for point in state.meter.core] == [6, 12]
    assert state.meter.core[-1] == (12, last.core, last.error, 12)
    history = history_of(folder, Home(tmp_path))
    text = card(PROGRAMS["mlx-lm"], saved, history, Usage("bash", ("run",)))
    shown = f"{last.core:.4f} at step 12, at most 12 examples per task (95% interval: "
    assert f"| CORE | {shown}{expected.ends[0]:.4f} to {expected.ends[1]:.4f}) |" in text
    quantized = mlxchat.load(folder).quantize(8, group_size=32)
    out = quantized.export("mlx-lm", tmp_path / "quantized")
    assert "CORE" not in (out / "README.md").read_text("utf-8")  # it has another


@pytest.mark.slow
def test_what_is_learnt_does_not_depend_on_core(tmp_path: Path, measuring: Measuring) -> None:
    run(tmp_path / "without", measuring(core_every=0))
    assert len(measured(run(tmp_path / "with", measuring(core_every=4)))) == 3
    run(tmp_path / "interrupted", measuring(core_every=4), stop_at=7)
    resumed = run(tmp_path / "interrupted", measuring(core_every=5))
    assert [event.step for event in measured(resumed)] == [10, 12]
    assert logged(tmp_path / "interrupted", "core") == [4, 10, 12]
    for home in ("with", "interrupted"):
        assert_same(final(tmp_path / "without"), final(tmp_path / home))


def test_kept_examples_are_as_they_were_encoded(bundle: Path) -> None:
    tokenizer, items = network().tokenizer, read_items(Bundle(bundle), MADE, None)
    examples = CoreExamples(items, tokenizer, keep=True)
    for label in MADE:
        expected = list(CoreExamples(items, tokenizer).encoded(label, range(EXAMPLES)))
        for indices in ([3, 1], range(EXAMPLES)):
            found = sorted(examples.encoded(label, indices), key=lambda each: each.index)
            assert found == [expected[index] for index in sorted(indices)]


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 12])
def test_whoever_asks_a_run_to_end_does_not_wait_for_core(
    step: int, tmp_path: Path, measuring: Measuring
) -> None:
    """Nor after the last step; on resuming, it is measured if the run goes on."""
    events = run(tmp_path, measuring(), stop_at=step)
    assert [event.step for event in measured(events)] == [6][: step // 12]
    assert isinstance(events[-1], Ended) and events[-1].step == step
    assert [e.step for e in events if isinstance(e, Saved)][-1] == step
    bars = [event for event in events if isinstance(event, Progressed) and event.done]
    assert len(bars) <= 3 * 12 * 2
    if step == 6:
        assert [event.step for event in measured(run(tmp_path, measuring()))] == [6, 12]
    else:
        notes = [event.text for event in events if isinstance(event, Noted)]
        assert "CORE was not measured after step 12." in notes


def test_a_missing_bundle_is_said_before_anything_is_trained(
    tmp_path: Path, measuring: Measuring
) -> None:
    config = measuring(core_bundle=tmp_path / "none.zip", tokenizer_dir=None)
    for check in (lambda: run(tmp_path, config), lambda: check_core(config, Home(tmp_path))):
        with pytest.raises(NotFound, match=r"There is no bundle of CORE tasks at .*none\.zip"):
            check()
    assert not (tmp_path / "tokenizer").exists()
    check_core(config.model_copy(update={"core_every": 0}), Home(tmp_path))
    check_core(config.model_copy(update={"core_bundle": None}), Home(tmp_path))  # it is fetched


def test_examples_that_cannot_be_encoded_do_not_end_a_run(
    tmp_path: Path, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> Iterator[Event]:
        raise DataError("Example 3 of made.jsonl cannot be evaluated.", "Leave it out.")

    monkeypatch.setattr(train_core, "measure_core", refused)
    events = run(tmp_path, measuring())
    assert isinstance(events[-1], Ended) and not measured(events)
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes.count("CORE was not measured. Example 3 of made.jsonl cannot be evaluated.") == 2


def test_the_fewest_examples_leave_room_for_the_shots() -> None:
    assert 1 + max(task.shots for task in CORE_TASKS.values()) == LEAST_PER_TASK


# Ranks


class TwoRanks(World):
    """Rank 0 of two; the other one asks to end at its third turn."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.announced: list[Act] = []
        self.turns = 0

    def announce(self, act: Act, number: int = 0) -> None:
        self.announced.append(act)

    def all_gather(self, numbers: Sequence[float]) -> npt.NDArray[np.float64]:
        self.turns += 1
        return np.array([numbers, [self.turns == 3]], np.float64)


def leader_of(world: World, asked: bool = False) -> Leader:
    """Return rank 0 of these ranks, which waits for no data."""
    return Leader(world, lambda: cast(Plan, None), RankBatches(world, lambda: asked, dict))


def test_other_ranks_hear_every_second_that_rank_0_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    world = TwoRanks()
    leader = leader_of(world)
    asked = []
    for now[0] in np.arange(0, 4, 0.25).tolist():
        asked.append(leader.wait())
    assert world.announced == [Act.WAIT] * 3
    assert asked.index(True) == 15 and asked.count(True) == 1


def test_a_run_alone_asks_itself_only() -> None:
    for stop in (True, False):
        assert leader_of(ALONE, asked=stop).wait() is stop
