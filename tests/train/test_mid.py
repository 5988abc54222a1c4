"""Mid-training: nanochat's batches, losses, rates and weights; runs between the other stages."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cases import golden
from support.marks import slow
from support.saved_runs import RUNS

from mlxchat.checkpoint import layout, store, trainer
from mlxchat.config.mid import MidConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.documents import Cursor, Read
from mlxchat.data.loader import Loader
from mlxchat.data.preparation import DIALOGUE
from mlxchat.errors import NotFound
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.optim import schedule
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.memory import BatchPlan, Resources
from mlxchat.plan.plan import Plan
from mlxchat.quantize import evaluate
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Ended, Evaluated, Event, Noted, Sampled, Stepped
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part
from mlxchat.train.base import Base
from mlxchat.train.mid import MidTraining, run_mid_training
from mlxchat.train.sft import FineTuning, run_fine_tuning
from mlxchat.train.sft_plan import conversation_plan
from mlxchat.train.stage import history_of, validation_documents
from mlxchat.train.step import StepParts, compile_step

# ==== nanochat's own mid_train ===================================================================

THEIRS = golden("mid.json")  # its `made_by` says how
SHAPE = GPTConfig(**THEIRS["config"])
UPDATES: list[dict[str, float]] = THEIRS["updates"]
GROUPS = ("embedding", "unembedding", "matrix")
PLENTY = Resources(10**12, 4, "all", 128)


def spoken(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return tuple(Part(part["type"], part["text"]) for part in content)


CONVERSATIONS = [  # in the order in which it read them
    Conversation(tuple(Message(each["role"], spoken(each["content"])) for each in messages))
    for messages in THEIRS["conversations"]
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    facts = golden("tokenizer.json")
    return Tokenizer.train(facts["train_docs"], facts["train_vocab_size"])


def loader(tokenizer: Tokenizer, conversations: list[Conversation], rows: int = 1) -> Loader:
    documents: Iterator[Read] = (
        ([conversation], Cursor(1, 0, number))
        for number, conversation in enumerate(conversations, start=1)
    )
    return Loader(documents, tokenizer, rows, SHAPE.sequence_len, preparation=DIALOGUE)


def their_model() -> GPT:
    model = GPT.new(SHAPE, dtype=mx.float32)
    random = np.random.RandomState(THEIRS["seed_of_weights"])
    weights = [
        (name, mx.array((random.standard_normal(array.shape) / 32**0.5).astype(np.float32)))
        for name, array in sorted(model.named_parameters().items())
    ]
    model.load_weights(weights)
    return model


def their_plan(tokenizer: Tokenizer) -> Plan:
    """The plan of a run on an epoch of the same conversations, from a base model of that shape."""
    with loader(tokenizer, CONVERSATIONS[: THEIRS["epoch"]]) as batches:
        rows = sum(1 for _ in batches)
    rates = schedule.learning_rates(PretrainConfig().numbers, SHAPE, THEIRS["tokens_per_step"])
    config = MidConfig(total_batch_size=THEIRS["tokens_per_step"], device_batch_size=1)
    return conversation_plan(config, Base(SHAPE, rates, 2**19), rows, PLENTY)


def test_batches_are_those_of_nanochats_mid_train(tokenizer: Tokenizer) -> None:
    with loader(tokenizer, CONVERSATIONS) as batches:
        for ids, targets in THEIRS["batches"]:
            batch = next(batches)
            assert batch.ids.tolist() == [ids]
            assert batch.targets.tolist() == [targets]  # none is masked


def test_losses_and_weights_are_those_of_nanochats_mid_train(tokenizer: Tokenizer) -> None:
    accumulation = THEIRS["accumulation"]
    model = their_model()
    with loader(tokenizer, CONVERSATIONS) as batches:
        step = StepParts(
            model=model,
            optimizer=MuonAdamW(model),
            batches=batches,
            rates=lambda done: Rates(
                {name: mx.array(UPDATES[done][name]) for name in GROUPS},
                mx.array(UPDATES[done]["momentum"]),
                mx.array(UPDATES[done]["weight_decay"]),
            ),
            plan=BatchPlan(device_batch_size=1, accumulation=accumulation),
            grad_clip=0.0,
        )
        launch = compile_step(step)
        losses = [launch(number).read()[0] for number in range(1, len(UPDATES) + 1)]
    theirs = np.reshape(THEIRS["losses"], (-1, accumulation)).mean(axis=1)
    assert losses == pytest.approx(theirs, rel=1e-4)
    for name, array in model.named_parameters().items():
        numbers, after = np.array(array, np.float64), THEIRS["after"][name]
        assert np.linalg.norm(numbers) == pytest.approx(after["norm"], rel=1e-5), name
        assert numbers.ravel()[:4] == pytest.approx(after["first"], abs=1e-4), name


def test_the_plan_is_that_of_nanochats_mid_train(tokenizer: Tokenizer) -> None:
    plan = their_plan(tokenizer)
    # It ends before the row in which the last conversation begins, and we after that row.
    assert plan.target_tokens == (3 * len(UPDATES) + 1) * SHAPE.sequence_len
    assert plan.num_iterations == len(UPDATES) + 1
    assert (plan.device_batch_size, plan.accumulation) == (1, THEIRS["accumulation"])
    for group, rate in plan.learning_rates.items():
        assert rate == pytest.approx(UPDATES[0][group])
    assert plan.weight_decay == UPDATES[0]["weight_decay"] == plan.grad_clip == 0


def test_rates_are_nanochats_at_the_same_progress(tokenizer: Tokenizer) -> None:
    """Progress is a share of the steps here, there one of the conversations that have been read."""
    plan, epoch = their_plan(tokenizer), THEIRS["epoch"]
    for number, update in enumerate(UPDATES):
        multiplier = schedule.learning_rate_multiplier(
            round(epoch * update["progress"]),
            epoch,
            plan.warmup_steps,
            plan.warmdown_ratio,
            plan.final_lr_frac,
        )
        assert plan.learning_rates["matrix"] * multiplier == pytest.approx(update["matrix"])
        stage = MidTraining(MidConfig(), Home(Path("/nowhere")))
        assert stage.momentum(plan, number) == pytest.approx(update["momentum"])


def test_the_loss_of_a_row_equals_one_computed_by_hand(tokenizer: Tokenizer) -> None:
    model, context = their_model(), SHAPE.sequence_len
    stream = [token for each in CONVERSATIONS for token in tokenizer.render(each)[0]]
    ids = stream[context + 1 : 2 * context + 2]  # the second row; rows share no token
    logits = np.array(model(mx.array([ids[:-1]])))[0].astype(np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    by_hand = np.mean(log_sums - logits[np.arange(context), ids[1:]])
    with loader(tokenizer, CONVERSATIONS) as batches:
        [batch] = islice(batches, 1, 2)
    loss = model.loss(mx.array(batch.ids), mx.array(batch.targets))
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)


# ==== Runs =======================================================================================

SMALL: dict[str, object] = {"device_batch_size": 2, "total_batch_size": 128, "sample_every": 0}


def settings(home: Path, **changed: object) -> dict[str, object]:
    return {
        **SMALL,
        "data": [str(home / "talks.jsonl")],
        "num_iterations": 10,
        "eval_every": 4,
        "eval_tokens": 512,
        "save_every": 3,
        **changed,
    }


@pytest.fixture(scope="module")
def based(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the saved base model ``classic``, and conversations."""
    home = tmp_path_factory.mktemp("based")
    shutil.copytree(RUNS / "classic", home, dirs_exist_ok=True)
    rows = [{"prompt": f"What is {i}?", "completion": f"It is {i * 7} or so."} for i in range(60)]
    (home / "talks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return home


@pytest.fixture(scope="module")
def straight(based: Path) -> list[Event]:
    """The events of an undisturbed run."""
    return run(based, model_tag="straight", sample_every=6)


def run(home: Path, stop: Callable[[], bool] = lambda: False, **changed: object) -> list[Event]:
    config = MidConfig.model_validate(settings(home, **changed))
    return list(run_mid_training(config, Home(home), lambda _: None, stop=stop))


def newest(home: Path, tag: str, stage: str = "mid-training") -> Path:
    folder = store.latest(Home(home).stage(stage) / tag)
    assert folder is not None
    return folder


def test_a_run_steps_evaluates_samples_and_saves(based: Path, straight: list[Event]) -> None:
    rates = [event.learning_rate for event in straight if isinstance(event, Stepped)]
    assert rates == pytest.approx([*[0.02] * 9, 0.01])  # the last 20% fall
    assert [event.step for event in straight if isinstance(event, Evaluated)] == [0, 4, 8, 10]
    assert {event.step for event in straight if isinstance(event, Sampled)} == {6, 10}
    assert newest(based, "straight").parts[-3:] == ("mid_checkpoints", "straight", "step_000010")
    saved = layout.read_model(newest(based, "straight"), mx.float32)
    assert saved.conversational
    [note] = [e.text for e in straight if isinstance(e, Noted) and "per epoch" in e.text]
    assert "58 conversations per epoch" in note  # of 60
    assert "truncated" not in note


@pytest.mark.parametrize("stop_at", [slow(1), 5, slow(8)])
def test_an_interrupted_run_resumes_bit_for_bit(
    based: Path, straight: list[Event], stop_at: int
) -> None:
    tag = f"stopped{stop_at}"
    seen: list[Event] = []
    config = MidConfig.model_validate(settings(based, model_tag=tag))
    stop = lambda: any(isinstance(e, Stepped) and e.step >= stop_at for e in seen)  # noqa: E731
    for event in run_mid_training(config, Home(based), lambda _: None, stop=stop):
        seen.append(event)
    assert isinstance(seen[-1], Ended) and seen[-1].reason == "interrupted"
    last = run(based, model_tag=tag)[-1]
    assert isinstance(last, Ended) and last.reason == "finished"
    for file in (layout.MODEL, trainer.OPTIMIZER, trainer.LOADER):
        mine, theirs = (layout.read_arrays(newest(based, t) / file) for t in (tag, "straight"))
        assert mine.keys() == theirs.keys()
        assert all(mx.array_equal(mine[name], theirs[name]).item() for name in theirs), file


def test_the_evaluation_counts_every_token_of_the_held_out(
    based: Path, straight: list[Event]
) -> None:
    folder = newest(based, "straight")
    saved = layout.read_model(folder, mx.float32)
    documents = validation_documents(folder, Home(based))
    *_, last = evaluate(saved, documents, 4096)
    assert isinstance(last, Evaluated)
    lengths = [
        len(saved.tokenizer.render(conversation)[0])
        for read, _ in documents.validation()
        for conversation in read
        if isinstance(conversation, Conversation)
    ]
    rows = -(-sum(lengths) // 33)  # the first token of a row is no target
    assert last.tokens == sum(lengths) - rows


def test_each_stage_begins_with_the_newest_of_those_before(
    based: Path, straight: list[Event]
) -> None:
    home = Home(based)
    assert MidTraining.with_source(MidConfig(), home).source == "classic"
    run(based, num_iterations=1, eval_every=0)
    changed = {"num_iterations": 1, "eval_every": 0, "validation_share": 0.1}
    tuned = SftConfig.model_validate(settings(based, **changed))
    assert FineTuning.with_source(tuned, home).source == "classic-mid"
    events = list(run_fine_tuning(tuned, home, lambda _: None))
    [note] = [e.text for e in events if isinstance(e, Noted) and "now held out" in e.text]
    assert "classic-mid was trained with a validation share of 0.02. With 0.1" in note
    history = history_of(newest(based, "classic-mid-sft", "fine-tuning"), home)
    assert [(each.stage, each.run, each.began_with) for each in history.trainings] == [
        ("pretraining", "classic", None),
        ("mid-training", "classic-mid", "classic"),
        ("fine-tuning", "classic-mid-sft", "classic-mid"),
    ]
    assert MidTraining.with_source(MidConfig(), home).source == "classic"
    with pytest.raises(NotFound, match="There is no base model"):
        MidTraining.with_source(MidConfig(), Home(based / "nowhere"))
