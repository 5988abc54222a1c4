"""Reinforcement learning: a run from its settings to its end, interrupted or not; refusals."""

import itertools
import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.marks import slow
from support.models import network, saved_in
from support.rl_runs import rl_config, rl_run
from support.thread_ranks import in_threads

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.rl import RlConfig
from mlxchat.data.questions.levels import FoundLevel
from mlxchat.data.questions.question import QuestionSource
from mlxchat.data.questions.tasks import questions_of
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.adapter import LoraConfig
from mlxchat.model.lora import adapter_arrays
from mlxchat.model.quantization import Format, quantizable
from mlxchat.model.quantized import quantize_layers
from mlxchat.plan.memory import Resources
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import (
    Drawing,
    Ended,
    Evaluating,
    Event,
    Judged,
    Noted,
    Progressed,
    Rewarded,
    Sampled,
    Started,
    Stepped,
)
from mlxchat.train import rl
from mlxchat.train.base import load_base
from mlxchat.train.rl import (
    Reinforcement,
    run_reinforcement,
    with_level,
    with_tuned_source,
)
from mlxchat.train.stage import Prepared, history_of, validation_documents
from mlxchat.train.world import World


def end_of(home: Path, step: int = 4) -> dict[str, mx.array]:
    folder = store.directory(Home(home).stage(Reinforcement.name) / "run", step)
    names = (layout.MODEL, trainer.OPTIMIZER, trainer.LOADER)
    return {f"{n} {k}": v for n in names for k, v in layout.read_arrays(folder / n).items()}


def assert_same(a: dict[str, mx.array], b: dict[str, mx.array]) -> None:
    assert a.keys() == b.keys()
    assert all(mx.array_equal(a[name], b[name]).item() for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_a_run_tells_what_it_learns_from_and_raises_its_reward(arch: str, tmp_path: Path) -> None:
    config = rl_config(
        tmp_path,
        arch,
        init_lr_frac=0.2,
        examples=8,
        samples=8,
        device_batch_size=16,
        num_iterations=8,
        eval_every=3,
        sample_every=8,
    )
    events = rl_run(tmp_path / "home", config)
    told = [event for event in events if isinstance(event, Rewarded)]
    assert [event.step for event in told] == list(range(1, 9))
    assert told[-1].reward > told[0].reward + 0.2
    assert all(event.entropy > 0 and event.tokens and event.seconds > 0 for event in told)
    assert [event.step for event in events if isinstance(event, Judged)] == [0, 3, 6, 8]
    samples = [event for event in events if isinstance(event, Sampled)]
    assert len(samples) == 2 and all(event.reward is not None for event in samples)
    kinds = [type(event) for event in events]
    assert kinds.index(Rewarded) < kinds.index(Stepped)  # of the same step
    assert isinstance(events[-1], Ended)
    lines = Home(tmp_path / "home").log("run").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "rewards" for line in lines) == 8


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path: Path) -> None:
    config = rl_config(tmp_path)
    rl_run(tmp_path / "straight", config)
    rl_run(tmp_path / "home", config, stop_at=1)
    events = rl_run(tmp_path / "home", config)
    assert [event.step for event in events if isinstance(event, Started)] == [1]
    assert_same(end_of(tmp_path / "home"), end_of(tmp_path / "straight"))


def test_a_run_is_resumed_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = rl_config(tmp_path, task="questions.jsonl", reward=["./reward.py:reward:2", "form"])
    assert config.task == str(tmp_path / "questions.jsonl")
    assert config.reward == [f"{tmp_path / 'reward.py'}:reward:2", "form"]
    rl_run(tmp_path / "home", config, stop_at=2)
    state = trainer.read_state(
        store.latest(Home(tmp_path / "home").stage(Reinforcement.name) / "run"),
        {Reinforcement.name: RlConfig},
    )
    monkeypatch.chdir("elsewhere")
    events = rl_run(tmp_path / "home", state.settings)
    assert isinstance(events[-1], Ended) and events[-1].step == 4


def test_a_file_of_questions_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(task: str, **settings: Any) -> QuestionSource:
        read.append(task)
        return questions_of(task, **settings)

    monkeypatch.setattr(rl, "questions_of", reading)
    rl_run(tmp_path / "home", rl_config(tmp_path, num_iterations=1))
    assert read == [str(tmp_path / "questions.jsonl")]


@pytest.mark.parametrize("task", ["arithmetic", "gsm8k"])
def test_a_file_with_the_name_of_a_task_does_not_take_its_place(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (task, "answer"):
        (tmp_path / name).write_text("")
    config = RlConfig(task=task, reward=["answer:0.5"])
    assert (config.task, config.reward) == (task, ["answer:0.5"])


@pytest.mark.parametrize("at", [33, 45])  # in step 2, between two tokens and between two rewards
def test_a_run_that_is_stopped_while_it_draws_has_lost_nothing(at: int, tmp_path: Path) -> None:
    config = rl_config(tmp_path)
    rl_run(tmp_path / "straight", config)
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return polls == at

    events = list(run_reinforcement(config, Home(tmp_path / "home"), lambda _: None, stop=stop))
    last = events[-1]
    assert isinstance(last, Ended) and last.reason == "interrupted" and last.step == 1
    rl_run(tmp_path / "home", config)
    assert_same(end_of(tmp_path / "home"), end_of(tmp_path / "straight"))


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    for size in (16, 2):
        config = rl_config(tmp_path, device_batch_size=size, num_iterations=1)
        rl_run(tmp_path / str(size), config)
    a, b = (end_of(tmp_path / str(size), step=1) for size in (16, 2))
    assert all(mx.allclose(a[name], b[name], atol=1e-4).item() for name in a)


def test_rates_fall_along_the_schedule(tmp_path: Path) -> None:
    for schedule, third in (("linear", 1 / 3), ("cosine", 0.25)):
        config = rl_config(tmp_path, schedule=schedule, num_iterations=3)
        events = rl_run(tmp_path / schedule, config)
        rates = [event.learning_rate for event in events if isinstance(event, Stepped)]
        assert rates[0] == pytest.approx(0.02 * 0.05)
        assert rates[2] == pytest.approx(third * rates[0])


def test_skipped_groups_do_not_dilute_the_others(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("")
    norms = {}
    for skip in (False, True):
        config = rl_config(tmp_path, skip_equal=skip, num_iterations=1, max_tokens=1)
        events = rl_run(tmp_path / str(skip), config)
        [step] = (event for event in events if isinstance(event, Stepped))
        norms[skip] = step.gradient_norm
    assert 0 < norms[False] <= norms[True]


def test_a_model_card_knows_the_stage_and_its_held_out_questions_can_be_read(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home")
    rl_run(home.root, rl_config(tmp_path, num_iterations=1))
    folder = store.directory(home.stage(Reinforcement.name) / "run", 1)
    [training] = history_of(folder, home).trainings
    assert (training.stage, training.step) == ("reinforcement learning", 1)
    assert training.data == ("its own answers to questions: questions.jsonl",)
    documents = validation_documents(folder, home)
    [(solved, _)] = list(documents.validation())
    assert len(solved) == 3


def test_the_data_in_words_name_the_licence_of_gsm8k(tmp_path: Path) -> None:
    [data] = Reinforcement(RlConfig(source="base", task="gsm8k"), Home(tmp_path)).data_in_words()
    assert data.endswith("gsm8k (https://huggingface.co/datasets/openai/gsm8k; MIT)")


def test_a_changed_reward_is_not_resumed(tmp_path: Path) -> None:
    config = rl_config(tmp_path)
    rl_run(tmp_path / "home", config, stop_at=2)
    (tmp_path / "reward.py").write_text("def reward(prompt, completion, answer): return 1.0")
    with pytest.raises(MlxchatError, match=r"reward\.py has changed since"):
        rl_run(tmp_path / "home", config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "dreaming"}, "no task"),
        ({"task": "arithmetic", "level": 99}, "level 99"),
        ({"device_batch_size": 5}, "does not divide the 16"),
        ({"reward": ["nowhere.py:reward"]}, "nowhere.py"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(MlxchatError, match=said):
        rl_run(tmp_path / "home", rl_config(tmp_path, **settings))


@pytest.mark.parametrize("task", [{}, {"task": "arithmetic", "reward": None}])
def test_a_base_model_is_refused_before_it_is_asked(
    task: dict[str, object], tmp_path: Path
) -> None:
    saved_in(tmp_path / "model", network(64), conversational=False)
    with pytest.raises(MlxchatError, match="so it cannot answer"):
        rl_run(tmp_path / "home", rl_config(tmp_path, **task))


def test_a_model_that_gets_nothing_right_is_told_to_be_fine_tuned(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match="none of the spelling questions") as raised:
        rl_run(tmp_path / "home", rl_config(tmp_path, task="spelling", reward=None))
    assert "fine-tune" in raised.value.remedy
    assert "--source" in raised.value.remedy  # the newest base model may be another one


@pytest.mark.slow
def test_the_search_for_a_level_is_announced_and_its_bar_ends(tmp_path: Path) -> None:
    told: list[Event] = []
    config = rl_config(tmp_path, task="spelling", reward=None)
    with pytest.raises(MlxchatError, match="at any level"):
        with_level(config, Home(tmp_path / "home"), told.append, lambda: 0.0)
    assert isinstance(told[0], Noted) and "level" in told[0].text
    assert isinstance(told[-1], Progressed) and told[-1].done == told[-1].total


@pytest.mark.parametrize(("share", "hopeless"), [(0.004, True), (0.3, False)])
def test_a_level_of_which_next_to_nothing_is_right_comes_with_a_remedy(
    share: float, hopeless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = FoundLevel(1, {1: share, 2: 0.0})
    monkeypatch.setattr(rl, "suitable_level", lambda *_: found)
    config = rl_config(tmp_path, task="spelling", reward=None)
    settled, notes = with_level(config, Home(tmp_path), print, lambda: 0.0)
    assert settled.level == 1
    assert ("0.4% at level 1, 0.0% at level 2" in notes[0]) == hopeless  # not "0%"
    assert ("mlxchat sft" in notes[-1] and "--data spelling-1" in notes[-1]) == hopeless


def test_slow_rewards_have_a_bar_of_their_own(tmp_path: Path) -> None:
    told: list[Event] = []
    seconds = itertools.count()  # passes at each look at it
    config = rl_config(tmp_path, num_iterations=1, eval_every=1)
    clock = Clock(seconds=lambda: next(seconds))
    events = [*run_reinforcement(config, Home(tmp_path / "home"), told.append, clock=clock)]
    drawing = [event for event in told if isinstance(event, Drawing)]
    assert [event.rewarded for event in drawing][-16:] == list(range(16))
    assert drawing[-1].in_words == "rewarding answers 15/16"
    assert drawing[0].in_words == "sampling answers 0/16"
    units = {event.unit for event in events if isinstance(event, Evaluating)}
    assert units == {"questions"}


@pytest.mark.parametrize("tuned", [False, True])
def test_the_remedy_for_a_base_model_names_its_fine_tuned_one(tuned: bool, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    base = home.runs / "d2"
    for run in (base, home.finetuned / "d2-sft") if tuned else (base,):
        run.mkdir(parents=True)
        saved_in(store.directory(run, 1), network(64), conversational=run != base)
    with pytest.raises(MlxchatError, match="cannot answer") as raised:
        rl_run(home.root, rl_config(tmp_path, source="d2"))
    named = "mlxchat rl --source d2-sft" if tuned else "mlxchat sft --source d2"
    assert named in raised.value.remedy


@pytest.mark.slow
def test_a_resumed_run_keeps_the_level_that_was_found(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    rl_run(home.root, rl_config(tmp_path, task="spelling", level=2), stop_at=2)
    found, notes = with_level(rl_config(tmp_path, task="spelling"), home, print, lambda: 0.0)
    assert found.level == 2 and notes == []


def test_by_default_an_unfinished_run_goes_on_and_adapters_are_passed_over(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    config = rl_config(tmp_path, model_tag=None, level=2, task="spelling")
    first = saved_in_run(home, "first", network(64))
    rl_run(home.root, config.model_copy(update={"source": "first"}), stop_at=2)
    saved_in_run(home, "second", network(64))
    left_out = config.model_copy(update={"source": None, "level": None})
    settled = with_tuned_source(left_out, home)
    assert (settled.source, settled.level) == ("first", 2)
    other = with_tuned_source(left_out.model_copy(update={"samples": 8}), home)
    assert (other.source, other.level) == ("second", None)
    begun = load_base(first, home, "float32", LoraConfig(rank=2))
    saved = layout.read_model(first, mx.float32)
    adapter = SavedModel(begun.model, saved.tokenizer, True, begun.base)
    third = home.finetuned / "third"
    store.save(third, 1, lambda folder: layout.write_saved(folder, adapter))
    assert with_tuned_source(left_out.model_copy(update={"samples": 8}), home) == other
    with pytest.raises(MlxchatError, match="is an adapter") as raised:
        rl_run(home.root, config.model_copy(update={"source": "third", "level": None}))
    assert raised.value.remedy.endswith("mlxchat fuse --model-tag third")


def saved_in_run(home: Home, name: str, saved: SavedModel) -> Path:
    return store.save(
        home.finetuned / name,
        1,
        lambda folder: layout.write_model(folder, saved.model, saved.tokenizer, True),
    )


@pytest.mark.parametrize("bits", [None, slow(4)])
def test_an_adapter_is_trained_and_resumed_bit_for_bit(bits: int | None, tmp_path: Path) -> None:
    lora = {"rank": 2, "learning_rate": 0.01}
    if bits:
        saved = network(64)
        layers = [layer.name for layer in quantizable(saved.model.config)]
        quantize_layers(saved.model, dict.fromkeys(layers, Format(group_size=32, bits=bits)))
        saved_in(tmp_path / "model", saved)
        with pytest.raises(MlxchatError, match="only an adapter") as raised:
            rl_run(tmp_path / "home", rl_config(tmp_path))
        assert "`lora`" in raised.value.remedy
    config = rl_config(tmp_path, lora=lora)
    rl_run(tmp_path / "straight", config)
    rl_run(tmp_path / "home", config, stop_at=1)
    rl_run(tmp_path / "home", config)
    trained = []
    for home in ("straight", "home"):
        folder = store.directory(Home(tmp_path / home).stage(Reinforcement.name) / "run", 4)
        assert not (folder / layout.MODEL).exists()
        trained.append(adapter_arrays(layout.read_model(folder, mx.float32).model))
    assert_same(*trained)
    assert any(name.endswith("lora_b") and array.any().item() for name, array in trained[0].items())


def test_settings_without_effect_on_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match="no effect with `lora`"):
        rl_config(tmp_path, lora=True, init_lr_frac=0.1)
    assert RlConfig(source="d4", lora=True).tag == "d4-rl-lora"


def test_the_default_source_must_exist(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match="no fine-tuned model"):
        with_tuned_source(RlConfig(), Home(tmp_path))


@pytest.mark.parametrize(
    "settings", [{"epochs": 1, "num_iterations": 2}, {"samples": 6, "pass_size": 4}]
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(MlxchatError):
        RlConfig(**settings)


def test_passes_are_nanochats_where_they_divide_the_samples() -> None:
    assert RlConfig().samples_per_pass == 8
    assert RlConfig(samples=12).samples_per_pass == 12


def test_the_note_of_a_reward_is_told(tmp_path: Path) -> None:
    config = rl_config(tmp_path, num_iterations=1)
    (tmp_path / "reward.py").write_text(
        "def reward(prompt, completion, answer):\n    print('x')\n    return len(completion)"
    )
    notes = [event.text for event in rl_run(tmp_path / "home", config) if isinstance(event, Noted)]
    assert any("printed" in note for note in notes)


def test_questions_that_ranks_cannot_divide_are_said_before_anything_is_made(
    tmp_path: Path,
) -> None:
    config, two = rl_config(tmp_path, examples=3), World()
    two.size = 2
    with pytest.raises(MlxchatError, match="The 3 questions of a step") as raised:
        Reinforcement(config, Home(tmp_path / "home"), world=two).open(None)
    assert raised.value.remedy == "Use 1 or 3 ranks, or a `examples` of 2 or 4 questions."


def test_ranks_draw_what_one_process_would_and_tell_of_all(tmp_path: Path) -> None:
    config = rl_config(tmp_path)
    resources = Resources(2**30, value_bytes=4, scores_held="none", chunk_rows=128)

    def first_step(here: World) -> tuple[Rewarded, float, int]:
        stage = Reinforcement(config, Home(tmp_path / "home"), world=here)
        documents = stage.open(None)
        *_, prepared = _with_result(stage.prepare(documents, resources, 0.0))
        with stage.batches(documents, prepared.state) as batches:
            number = prepared.state.plan.per_rank(here.size).accumulation
            made = [next(batches) for _ in range(number)]
            [event] = batches.take_events()
        tokens = sum(int((batch.targets >= 0).sum()) for batch in made)
        return event, sum(float(abs(batch.weights).sum()) for batch in made), tokens

    alone, weight, tokens = first_step(World())
    of_ranks = in_threads(2, first_step)
    for event, _, _ in of_ranks:
        same = replace(event, time=alone.time, seconds=alone.seconds, entropy=alone.entropy)
        assert same == alone
    assert sum(weight for _, weight, _ in of_ranks) == pytest.approx(weight)
    assert sum(tokens for _, _, tokens in of_ranks) == tokens


def _with_result(events: Generator[Event, None, Prepared]) -> Iterator[Event | Prepared]:
    """The events of a generator, and last what it returns."""
    yield (yield from events)
