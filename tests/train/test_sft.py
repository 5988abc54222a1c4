"""Fine-tuning: the loss by hand, derived settings, resuming bit for bit, refusals."""

import json
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from support.cases import golden
from support.marks import slow

from mlxchat.checkpoint import catalog, files, layout, store, trainer
from mlxchat.checkpoint.bases import BASE_FILE
from mlxchat.checkpoint.stamp import write_stamp
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.data.chats import mixture
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.reading import SourceReport, read_source
from mlxchat.data.chats.sources import Source, parse
from mlxchat.data.documents import Cursor
from mlxchat.data.loader import Batch, Loader, LoaderState
from mlxchat.data.preparation import ANSWERS
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.memory import BatchPlan, Resources
from mlxchat.quantize import evaluate
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Ended, Evaluated, Event, Noted, Sampled, Stepped
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message
from mlxchat.train.base import Base, read_base
from mlxchat.train.pretrain import run_pretraining
from mlxchat.train.sft import FineTuning, run_fine_tuning
from mlxchat.train.sft_plan import conversation_plan, survey
from mlxchat.train.stage import validation_documents
from mlxchat.train.step import StepParts, compile_step

BASE = PretrainConfig(
    depth=1,
    dataset="builtin",
    vocab_size=300,
    max_seq_len=64,
    device_batch_size=4,
    total_batch_size=256,
    num_iterations=4,
    eval_every=0,
    sample_every=0,
    save_every=0,
    model_tag="base",
)
TUNING = SftConfig(
    source="base",
    num_iterations=12,
    total_batch_size=256,
    device_batch_size=2,
    validation_share=0.1,
    eval_every=5,
    eval_tokens=512,
    sample_every=6,
    save_every=3,
    keep=2,
    model_tag="tuned",
)
PLENTY = Resources(10**12, 4, "all", 128)


def talks(count: int) -> list[dict[str, object]]:
    said = ("Hello there", "a fox", "What is red?", "Count the dogs, please", "the lazy dog jumps")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{said[i % 5]} {i}"},
                {"role": "assistant", "content": f"{said[(i + 2) % 5]} {i * 7}"},
            ]
        }
        for i in range(count)
    ]


def write(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def based(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a base model, and 120 conversations."""
    home = tmp_path_factory.mktemp("based")
    for _ in run_pretraining(BASE, Home(home), lambda _: None):
        pass
    write(home / "talks.jsonl", talks(120))
    return home


def tuning(home: Path, **settings: object) -> SftConfig:
    given = {**TUNING.model_dump(), "data": [str(home / "talks.jsonl")], **settings}
    return SftConfig.model_validate(given)


def run(home: Path, config: SftConfig, stop_at: int = 0) -> list[Event]:
    """All events of a run that is asked to stop once step ``stop_at`` is seen."""
    seen: list[Event] = []

    def stop() -> bool:
        seen_steps = (event.step for event in seen if isinstance(event, Stepped))
        return bool(stop_at) and max(seen_steps, default=0) >= stop_at

    for event in run_fine_tuning(config, Home(home), lambda _: None, stop=stop):
        seen.append(event)
    return seen


def final(home: Path, tag: str) -> dict[str, mx.array]:
    folder = store.directory(Home(home).finetuned / tag, 12)
    files = (layout.MODEL, trainer.OPTIMIZER, trainer.LOADER)
    return {f"{f} {k}": v for f in files for k, v in layout.read_arrays(folder / f).items()}


def test_the_loss_equals_one_computed_by_hand_from_the_answers() -> None:
    facts = golden("tokenizer.json")
    tokenizer = Tokenizer.train(facts["train_docs"], facts["train_vocab_size"])
    conversations = [
        Conversation((Message("user", ask), Message("assistant", answer)))
        for ask, answer in (("hello the cat", "the dog, 12"), ("seven?", "7"), ("more", "blue"))
    ]
    config = GPTConfig(
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=64,
        vocab_size=tokenizer.vocab_size,
        sequence_len=32,
    )
    model = GPT.new(config, dtype=mx.float32)
    model.lm_head.weight = mx.random.normal(model.lm_head.weight.shape, key=mx.random.key(1)) / 8
    documents = iter([(list(conversations), Cursor(1, 0, 3))])
    [batch] = Loader(documents, tokenizer, 8, 32, preparation=ANSWERS)
    nats, learnt = 0.0, 0
    for conversation in conversations:
        ids, mask = tokenizer.render(conversation)
        # Each by itself, which is the same in a row with others only where they are not attended
        # to: so each is put into a row of its own.
        alone = iter([([conversation], Cursor(1, 0, 1))])
        [row] = Loader(alone, tokenizer, 1, 32, preparation=ANSWERS)
        logits = np.array(model(mx.array(row.ids)))[0].astype(np.float64)
        for position, (token, said) in enumerate(zip(ids[1:], mask[1:], strict=True)):
            if said:
                shifted = logits[position] - logits[position].max()
                nats += np.log(np.exp(shifted).sum()) - shifted[token]
                learnt += 1
        assert (row.targets >= 0).sum() == sum(mask[1:])
        assert row.ids[0, len(ids) :].tolist() == [tokenizer.bos] * (32 - len(ids))
    assert (batch.targets >= 0).sum() == learnt
    rows = [
        next(Loader(iter([([c], Cursor())]), tokenizer, 1, 32, preparation=ANSWERS))
        for c in conversations
    ]
    ids = mx.array(np.concatenate([row.ids for row in rows]))
    targets = mx.array(np.concatenate([row.targets for row in rows]))
    assert model.loss(ids, targets).item() == pytest.approx(nats / learnt, abs=1e-5)


def test_a_step_is_the_mean_over_its_answers_however_it_is_split() -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_kv_head=1, n_embd=64, vocab_size=50, sequence_len=16)
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (4, 16), np.int32)
    targets = random.integers(0, 50, (4, 16), np.int32)
    targets[0, 2:], targets[1], targets[2, ::2] = -1, -1, -1  # 2, none, 8 and 16 are learnt

    def stepped(rows: int) -> tuple[float, dict[str, mx.array]]:
        model = GPT.new(config, dtype=mx.float32)
        model.lm_head.weight = mx.random.normal(model.lm_head.weight.shape, key=mx.random.key(1))
        optimizer = MuonAdamW(model)
        groups = ("embedding", "unembedding", "matrix")
        step = StepParts(
            model=model,
            optimizer=optimizer,
            batches=(
                Batch(ids[i : i + rows], targets[i : i + rows], LoaderState())
                for i in range(0, 4, rows)
            ),
            rates=lambda _: Rates(
                {group: mx.array(0.02) for group in groups}, mx.array(0.9), mx.array(0.0)
            ),
            plan=BatchPlan(device_batch_size=rows, accumulation=4 // rows),
            grad_clip=0.0,
        )
        loss = compile_step(step)(1).read()[0]
        return loss, model.named_parameters()

    whole, parameters = stepped(4)
    model = GPT.new(config, dtype=mx.float32)
    model.lm_head.weight = mx.random.normal(model.lm_head.weight.shape, key=mx.random.key(1))
    by_hand = model.losses(mx.array(ids), mx.array(targets)).sum().item() / 26
    assert whole == pytest.approx(by_hand, rel=1e-5)
    for rows in (1, 2):
        loss, others = stepped(rows)
        assert loss == pytest.approx(whole, rel=1e-6)
        for name, array in parameters.items():
            assert mx.allclose(others[name], array, atol=1e-5).item(), (rows, name)


def test_a_run_steps_evaluates_samples_and_saves(based: Path, tmp_path: Path) -> None:
    events = run(based, tuning(based, model_tag="straight"))
    steps = [event.step for event in events if isinstance(event, Stepped)]
    assert steps == list(range(1, 13))
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 5, 10, 12]
    assert {event.step for event in events if isinstance(event, Sampled)} == {6, 12}
    rates = [event.learning_rate for event in events if isinstance(event, Stepped)]
    assert rates[:7] == pytest.approx([0.8 * 0.02] * 7)  # nanochat's: 0.8, then down to 0
    assert rates[7:] == pytest.approx([0.8 * 0.02 * left / 6 for left in (5, 4, 3, 2, 1)])
    folder = store.latest(Home(based).finetuned / "straight")
    assert folder is not None
    saved = layout.read_model(folder, mx.float32)
    assert saved.conversational
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert any("120 of 120 rows used" in note for note in notes)
    assert any("conversations per epoch" in note for note in notes)


@pytest.mark.parametrize("stop_at", [slow(1), 5, slow(8)])
def test_an_interrupted_run_resumes_bit_for_bit(based: Path, stop_at: int) -> None:
    if not (Home(based).finetuned / "straight").exists():
        run(based, tuning(based, model_tag="straight"))
    config = tuning(based, model_tag=f"stopped{stop_at}")
    first = run(based, config, stop_at=stop_at)
    assert isinstance(first[-1], Ended)
    assert first[-1].reason == "interrupted"
    second = run(based, config)
    assert isinstance(second[-1], Ended)
    assert second[-1].reason == "finished"
    mine, straight = final(based, config.tag), final(based, "straight")
    assert mine.keys() == straight.keys()
    for name, array in straight.items():
        assert mx.array_equal(mine[name], array).item(), name


def test_it_starts_from_the_base_models_weights_and_on_request_its_momentum(based: Path) -> None:
    folder = store.latest(Home(based).runs / "base")
    assert folder is not None
    state = layout.read_arrays(folder / trainer.OPTIMIZER)
    for asked in (False, True):
        tag = f"momentum-{asked}".lower()
        config = tuning(
            based, model_tag=tag, load_optimizer=asked, num_iterations=1, init_lr_frac=1e-12
        )
        run(based, config)
        tuned = store.latest(Home(based).finetuned / tag)
        assert tuned is not None
        weights = layout.read_arrays(tuned / layout.MODEL)
        for name, array in layout.read_arrays(folder / layout.MODEL).items():
            assert mx.allclose(weights[name], array, atol=1e-9).item(), name
        kept = layout.read_arrays(tuned / trainer.OPTIMIZER)
        assert kept.keys() == state.keys()
        counts = [name for name in kept if kept[name].size == 1]
        assert counts
        for name in counts:
            assert kept[name].item() == (state[name].item() + 1 if asked else 1)


def test_the_survey_counts_the_rows_that_training_packs(based: Path) -> None:
    folder = store.latest(Home(based).runs / "base")
    assert folder is not None
    tokenizer = Tokenizer.load(folder)
    documents = ChatDocuments([parse(str(based / "talks.jsonl"))], seed=42)
    reports: list[Event] = []
    found = survey(documents, tokenizer, 20, reports.append, lambda: 0.0)
    everything = [
        tokenizer.render(conversation)
        for read, _ in islice(documents.training(Cursor()), documents.epoch_size)
        for conversation in read
        if isinstance(conversation, Conversation)
    ]
    assert len(everything) == documents.epoch_size
    rendered = [(ids, mask) for ids, mask in everything if any(mask[:21])]
    assert found.conversations == len(rendered) == len(everything) - found.unanswered
    assert found.truncated == sum(len(ids) > 21 for ids, _ in rendered) > 0
    assert found.tokens == sum(min(21, len(ids)) for ids, _ in rendered)
    assert found.learned == sum(sum(mask[:21]) for _, mask in rendered)
    assert found.rows * 21 >= found.tokens


def test_the_batch_is_that_of_pretraining_or_small_enough_for_100_steps() -> None:
    model = GPTConfig(sequence_len=64, vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=64)
    rates = {"embedding": 0.2, "unembedding": 0.004, "matrix": 0.02}
    base = Base(model, rates, 64 * 64)
    made = conversation_plan(SftConfig(), base, 100_000, PLENTY)
    assert (made.rows_per_step, made.num_iterations) == (
        64,
        1563,
    )  # every row, the last step a part again
    assert made.learning_rates == {group: 0.8 * rate for group, rate in rates.items()}
    assert made.weight_decay == made.grad_clip == made.warmup_steps == made.final_lr_frac == 0
    made = conversation_plan(SftConfig(epochs=3), base, 1_000, PLENTY)
    assert (made.rows_per_step, made.num_iterations) == (16, 188)
    assert conversation_plan(SftConfig(), base, 3, PLENTY).num_iterations == 3
    with pytest.raises(MlxchatError, match="not a multiple of a row's 64 tokens"):
        conversation_plan(SftConfig(total_batch_size=100), base, 100, PLENTY)


def test_learning_rates_are_nanochats_where_the_model_says_nothing(based: Path) -> None:
    folder = store.latest(Home(based).runs / "base")
    assert folder is not None
    of_run = read_base(folder, Home(based))
    assert of_run.tokens_per_step == 256
    trainer = folder / layout.TRAINER
    content = trainer.read_bytes()
    trainer.unlink()
    try:
        unknown = read_base(folder, Home(based))
    finally:
        trainer.write_bytes(content)
    assert unknown.learning_rates == of_run.learning_rates
    assert unknown.tokens_per_step == 2**19


def test_a_fine_tuned_model_is_fine_tuned_at_the_rates_of_its_pretraining(based: Path) -> None:
    run(based, tuning(based, model_tag="first", num_iterations=1))
    folders = [
        store.latest(based / name)
        for name in ("base_checkpoints/base", "chatsft_checkpoints/first")
    ]
    base, tuned = (read_base(folder, Home(based)) for folder in folders if folder)
    assert tuned.learning_rates == pytest.approx(base.learning_rates)
    again = tuning(based, source="first", model_tag="second", num_iterations=1)
    [rate] = [event.learning_rate for event in run(based, again) if isinstance(event, Stepped)]
    assert rate == pytest.approx(0.8 * 0.02)


@pytest.mark.slow
def test_a_modern_models_rates_are_nanochats_whatever_its_batch(tmp_path: Path) -> None:
    modern = BASE.model_copy(update={"arch": "modern", "depth": 2, "num_iterations": 1})
    for _ in run_pretraining(modern, Home(tmp_path), lambda _: None):
        pass
    folder = store.latest(Home(tmp_path).runs / "base")
    assert folder is not None
    rates = read_base(folder, Home(tmp_path)).learning_rates
    by_width = (128 / 768) ** -0.5
    assert rates["matrix"] == 0.02
    assert rates["embedding"] == pytest.approx(0.3 * by_width)
    assert rates["unembedding"] == pytest.approx(0.008 * by_width)


def test_conversations_without_an_answer_in_the_context_are_skipped(
    based: Path, tmp_path: Path
) -> None:
    long = {"messages": [{"role": "user", "content": "why " * 200}, talks(1)[0]["messages"][1]]}
    data = write(tmp_path / "long.jsonl", [*[long] * 5, *talks(40)])
    config = tuning(based, data=[str(data)], model_tag="long", num_iterations=2)
    events = run(based, config)
    assert all(event.loss > 0 for event in events if isinstance(event, Stepped))
    [note] = [e.text for e in events if isinstance(e, Noted) and "per epoch" in e.text]
    assert "have no answer within the context and were skipped" in note
    data = write(tmp_path / "long.jsonl", [long, {**long, "id": 1}, *[long] * 4])
    other = {"messages": [{"role": "user", "content": "who " * 200}, talks(1)[0]["messages"][1]]}
    write(data, [long, other])
    with pytest.raises(MlxchatError, match="No conversation has an answer within"):
        run(based, tuning(based, data=[str(data)], model_tag="none"))


def test_the_default_source_is_the_newest_trainable_base_model(based: Path) -> None:
    folder = store.latest(Home(based).runs / "base")
    assert folder is not None
    copy = Home(based).runs / "base-4bit" / folder.name
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "SHA256SUMS").unlink()
    (copy / "config.json").write_text(json.dumps({**config, "quantization": {"bits": 4}}))
    try:
        assert FineTuning.with_source(SftConfig(), Home(based)).source == "base"
        (copy / "config.json").write_text(json.dumps(config))
        (copy / BASE_FILE).write_text("{}")  # as beside an adapter, which is no whole model
        assert FineTuning.with_source(SftConfig(), Home(based)).source == "base"
    finally:
        shutil.rmtree(copy.parent)
    with pytest.raises(MlxchatError, match="There is no base model"):
        FineTuning.with_source(SftConfig(), Home(based / "nowhere"))


def test_a_run_without_a_source_resumes_with_its_own(based: Path, tmp_path: Path) -> None:
    home = Home(tmp_path)
    shutil.copytree(based / "base_checkpoints", tmp_path / "base_checkpoints")
    shutil.copy(based / "talks.jsonl", tmp_path)
    config = tuning(tmp_path, source=None, model_tag=None)
    assert isinstance(run(tmp_path, config, stop_at=3)[-1], Ended)
    newer = home.runs / "newer"
    shutil.copytree(home.runs / "base", newer)
    [step] = newer.iterdir()
    write_stamp(step, 2.0**33)
    files.write_checksums(step)
    assert FineTuning.with_source(config, home).source == "base"
    assert run(tmp_path, config)[-1].step == 12
    assert FineTuning.with_source(config, home).source == "newer"  # that one is finished


def test_a_folder_of_a_runs_name_is_not_the_run(
    based: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    newest = store.latest(Home(based).runs / "base")
    assert newest is not None
    stages = Home(based).stages
    assert catalog.find_model(stages, "base", None) == newest
    assert catalog.find_model(stages, "./base", None) == tmp_path / "base"
    assert catalog.find_model(stages, str(newest.parent), None) == newest
    assert catalog.find_model(stages, str(newest.parent), 4) == newest
    with pytest.raises(MlxchatError, match="base has no checkpoint of step 5"):
        catalog.find_model(stages, str(newest.parent), 5)


def test_changed_conversations_are_refused(based: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "mine.jsonl", talks(40))
    config = TUNING.model_copy(update={"data": [str(data)], "model_tag": "changed"})
    run(based, config, stop_at=4)
    write(data, talks(41))
    with pytest.raises(
        MlxchatError, match="differs from the file used when the run changed was started"
    ):
        run(based, config)
    write(data, talks(40))
    assert isinstance(run(based, config)[-1], Ended)


def test_a_run_resumes_from_another_folder(
    based: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths of its conversations are kept in full; earlier versions kept what was typed."""
    write(tmp_path / "talks.jsonl", talks(40))
    monkeypatch.chdir(tmp_path)
    config = tuning(based, data=["talks.jsonl"], model_tag="moved")
    run(based, config, stop_at=2)
    saved = config.model_dump(mode="json")
    monkeypatch.chdir("/")
    stage = FineTuning(SftConfig.model_validate(saved), Home(based))
    assert stage.config.data == [str(tmp_path / "talks.jsonl")]
    documents = stage.open(stage.saved())
    monkeypatch.chdir(tmp_path)
    stage._require_same_files({"talks.jsonl": "x"}, {f"{tmp_path}/talks.jsonl": "x"})
    documents.close()


def test_files_that_another_version_reads_in_another_way_are_refused(
    based: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "mine.jsonl", talks(40))
    config = TUNING.model_copy(update={"data": [str(data)], "model_tag": "reread"})
    run(based, config, stop_at=1)

    def skipping_one(source: Source) -> tuple[list[Conversation], SourceReport]:
        conversations, report = read_source(source)
        return conversations[1:], report

    monkeypatch.setattr(mixture, "read_source", skipping_one)
    with pytest.raises(MlxchatError, match="a version of mlxchat that reads or generates"):
        run(based, config)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"data": None}, "No training data is given"),
        ({"data": ["nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
        ({"source": "nobody"}, "There is no trained model called nobody"),
        ({"model_tag": "base"}, "The name base is already used by another run"),
        ({"device_batch_size": 3}, "not a multiple of 3 rows"),
        ({"memory_limit": "1MiB"}, "needs at least"),
        ({"epochs": 2}, "`epochs=2` determines"),
        ({"identity": "Ada"}, "not of the form KEY=VALUE"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    based: Path, settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(MlxchatError, match=problem):
        run(based, tuning(based, **{"model_tag": "refused", **settings}))
    assert not (Home(based).finetuned / "refused").exists()


def test_a_quantized_copy_is_evaluated_on_the_held_out_conversations(based: Path) -> None:
    run(based, tuning(based, model_tag="whole", num_iterations=3))
    folder = store.latest(Home(based).finetuned / "whole")
    assert folder is not None
    documents = validation_documents(folder, Home(based))
    saved = layout.read_model(folder, mx.float32)
    *_, last = evaluate(saved, documents, 4096)
    assert isinstance(last, Evaluated)
    answers = [
        sum(saved.tokenizer.render(conversation)[1])
        for read, _ in documents.validation()
        for conversation in read
        if isinstance(conversation, Conversation)
    ]
    assert last.tokens == sum(answers)
