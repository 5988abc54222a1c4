"""`mlxchat eval base` from the outside, and the loss on texts of one's own."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from support.core_bundle import MADE, made_bundle
from support.core_goldens import core_model
from support.foreign_models import write_nanochat
from support.models import BYTES, network, saved_in

import mlxchat
from mlxchat.checkpoint import layout
from mlxchat.checkpoint.digests import model_digest
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli import evaluate_base
from mlxchat.cli.evaluate_base import eval_base_command
from mlxchat.config.inference import BaseEvalConfig
from mlxchat.errors import ConfigError, DataError, MlxchatError, NotFound
from mlxchat.evaluate.core_bundle import Bundle
from mlxchat.evaluate.core_examples import read_items
from mlxchat.evaluate.core_prompts import encode_examples
from mlxchat.evaluate.core_tasks import CORE_TASKS
from mlxchat.evaluate.core_verdicts import judge_examples
from mlxchat.evaluate.loss import bits_per_byte, lay_out_text
from mlxchat.evaluate.text import require_texts, text_loss
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Event, Progressed

# Texts


def by_hand(saved: SavedModel, ids: list[int], context: int) -> float:
    """The nats of all tokens but the first, a piece of the context at a time."""
    nats = 0.0
    for start in range(0, len(ids) - 1, context):
        piece = ids[start : start + context + 1]
        logits = saved.model(mx.array([piece[:-1]]))[0]
        for place, token in enumerate(piece[1:]):
            row = [float(value) for value in logits[place].tolist()]
            nats += math.log(sum(map(math.exp, row))) - row[token]
    return nats


def test_a_text_is_predicted_piece_by_piece(tmp_path: Path) -> None:
    saved, text = network(sequence_len=32), "Naïve cows say moo.\n\n\nTwice, and a third time.\n"
    path = tmp_path / "cow.txt"
    path.write_text(text, "utf-8")
    events: list[Event] = []
    found = text_loss(saved, path, events.append)
    ids = [BYTES.bos, *BYTES.encode(text)]
    nats = by_hand(saved, ids, 32)
    assert found.tokens == len(ids) - 1 and found.documents == 1
    assert found.loss == pytest.approx(nats / found.tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    last = events[-1]
    assert isinstance(last, Progressed) and last.done == last.total


def test_each_row_of_a_file_is_a_text(tmp_path: Path) -> None:
    saved, texts = network(), ["moo", "the calf says moo too", "no"]
    path = tmp_path / "cows.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    found = text_loss(saved, path, lambda event: None)
    nats = sum(by_hand(saved, [BYTES.bos, *BYTES.encode(text)], 512) for text in texts)
    assert found.documents == 3 and found.tokens == sum(map(len, texts))
    assert found.loss == pytest.approx(nats / found.tokens, rel=1e-5)


def test_long_texts_are_encoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.txt"
    path.write_text("a line of text\n" * 50)
    expected = text_loss(network(), path, lambda event: None)
    monkeypatch.setattr("mlxchat.evaluate.text.ENCODED_AT_ONCE", 40)
    assert text_loss(network(), path, lambda event: None) == expected


def test_a_text_of_several_contexts_is_laid_out_in_rows_of_one() -> None:
    batches = lay_out_text([list(range(10)), [5], [7, 8]], 0, 4)
    rows = [
        ([t for t in targets if t >= 0], list(ids))
        for batch in batches
        for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True)
    ]
    assert sorted(targets for targets, _ in rows) == [[1, 2, 3, 4], [5, 6, 7, 8], [8], [9]]
    *_, found = bits_per_byte(network().model.losses, batches, len(batches), BYTES)
    assert isinstance(found, Evaluated) and found.tokens == 10


def test_texts_that_cannot_be_measured_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no file"):
        require_texts([tmp_path / "none.txt"])
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="does not have the name of a text file"):
        require_texts([tmp_path / "a.png"])
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt has no text to predict"):
        text_loss(network(), tmp_path / "empty.txt", lambda event: None)
    (tmp_path / "latin.txt").write_bytes(b"ol\xe9")
    with pytest.raises(DataError, match=r"latin\.txt, line 1 is not UTF-8") as caught:
        text_loss(network(), tmp_path / "latin.txt", lambda event: None)
    for setting in ("`encoding`", "`skip_bad`"):  # there are none here
        assert setting not in caught.value.remedy


# The command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_in(tmp_path / "model", core_model("modern"), conversational=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return made_bundle(tmp_path)


def run(checkpoint: Path, json: bool = True, fresh: bool = False, **given: object) -> None:
    config = BaseEvalConfig.model_validate(given)
    eval_base_command(checkpoint=checkpoint, json=json, fresh=fresh, config=config)


def facts(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_json_has_every_score_text_and_sample(
    model: Path, bundle: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "cow.txt"
    text.write_text("The cow says moo.")
    run(model, tasks=",".join(MADE), bundle=bundle, text=[str(text)], samples=True)
    found = facts(capsys)
    assert found["complete"] and found["model"] == str(model) and found["validation"] is None
    core = found["core"]
    assert [task["task"] for task in core["tasks"]] == list(MADE)
    assert not core["all_tasks"] and core["max_per_task"] is None
    for task in core["tasks"]:
        assert task["score"] == task["right"] / task["problems"]
        assert task["centered"] == pytest.approx(
            (task["score"] - task["random"]) / (1 - task["random"])
        )
        assert task["centered_error"] >= task["error"] > 0
        assert task["low"] < task["score"] < task["high"] or task["score"] in (0, 1)
        assert task["centered_low"] <= task["centered"] <= task["centered_high"]
        for end in ("low", "high"):
            assert task[f"centered_{end}"] * (1 - task["random"]) == pytest.approx(
                task[end] - task["random"]
            )
        assert list(task["gpt2"]) == ["124M", "355M", "774M", "1.56B"]
    assert core["core"] == pytest.approx(sum(task["centered"] for task in core["tasks"]) / 3)
    assert core["high"] - core["core"] == pytest.approx(1.96 * core["error"], rel=1e-4)
    assert core["core"] - core["low"] == pytest.approx(1.96 * core["error"], rel=1e-4)
    assert Path(core["csv"]).parent == home / "base_eval"
    [of_text] = found["texts"]
    assert of_text["perplexity"] == pytest.approx(math.exp(of_text["loss"]))
    assert len(found["samples"]) == 7


def test_the_results_are_shown_in_words(
    model: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, json=False, tasks="copa,bigbench_operators", bundle=bundle, max_per_task=12)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "GPT-2 124M" in lines[0] and lines[1].startswith("copa") and "60.0%" in lines[1]
    assert "Mean centered score" in lines[3]
    assert "), only 2 of 22 tasks, at most 12 examples each; mlxchat " in lines[3]
    assert re.search(r"\d\.\d% \(\d+\.\d% to \d+\.\d%\) ", lines[1])
    assert re.search(r" -?\d\.\d{4} \(95% interval: -?\d\.\d{4} to -?\d\.\d{4}\), ", lines[3])
    assert "bigbench_operators: 12 examples" in said.err


def test_without_a_choice_what_there_is_is_measured(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert len(found["samples"]) == 7 and found["core"] is None and found["complete"]
    assert "The validation text is not measured." in said.err
    assert "CORE is not measured. To measure it, add --core" in said.err


def test_a_bundle_that_is_named_is_measured_or_refused(
    model: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[Path | None] = []

    def noticed(
        name: str, saved: SavedModel, config: BaseEvalConfig, *_: object, **__: object
    ) -> NoReturn:
        named.append(config.bundle)
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxchat.evaluate.core.evaluate_run", noticed)
    with pytest.raises(typer.Exit):
        run(model, bundle=bundle)
    assert named == [bundle]
    for setting in ({"bundle": bundle}, {"max_per_task": 12}):
        with pytest.raises(ConfigError, match="applies to CORE, which is not being measured"):
            run(model, samples=True, **setting)


def test_validation_text_that_is_asked_for_has_to_be_there(model: Path) -> None:
    with pytest.raises(MlxchatError, match="does not record what text the model was trained on"):
        run(model, validation=True)


def test_mistakes_are_told_before_the_model_is_read(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="There is no task 'mmlu'"):
        run(model, tasks="mmlu")
    with pytest.raises(NotFound, match=r"none\.txt"):
        run(model, text=[str(tmp_path / "none.txt")])


def test_ctrl_c_loses_nothing_that_is_complete(
    model: Path,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxchat.evaluate.core.measure_core", interrupted)
    with pytest.raises(typer.Exit) as ended:
        run(model, tasks="copa", bundle=bundle, samples=True)
    said = capsys.readouterr()
    assert ended.value.exit_code == 130 and evaluate_base.INTERRUPTED in said.err
    found = json.loads(said.out)
    assert len(found["samples"]) == 7 and found["core"] is None and not found["complete"]


# From Python


def test_the_same_from_python(
    model: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, tasks="copa,winograd", bundle=bundle)
    found = facts(capsys)["core"]
    events: list[Event] = []
    loaded = mlxchat.load(model)
    result = loaded.evaluate_core(["winograd", "copa"], bundle=bundle, report=events.append)
    assert result.core == found["core"] and result.error == found["error"]
    assert any("28 of 28 examples" in getattr(event, "text", "") for event in events)
    with pytest.raises(ConfigError, match="There is no task 'x'"):
        loaded.evaluate_core(["x"])
    with pytest.raises(ConfigError, match="`max_per_task=0`"):
        loaded.evaluate_core(max_per_task=0)


def test_scores_name_the_weights_that_they_are_of(
    model: Path, bundle: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, tasks="copa", bundle=bundle)
    digest = model_digest(model)
    assert Path(facts(capsys)["core"]["csv"]).name.endswith(f"_of_{digest}_1_tasks.csv")
    loaded = mlxchat.load(model)
    loaded.evaluate_core(["copa"], bundle=bundle)
    weights = loaded.network.named_parameters()
    loaded.network.load_weights([(name, 2 * array) for name, array in weights.items()])
    loaded.evaluate_core(["copa"], bundle=bundle)
    ends = [path.stem.split("_of_")[1] for path in (home / "base_eval").glob("*.jsonl")]
    assert len(ends) == 2 and ends.count(digest) == 1


def test_a_model_in_memory_is_known_by_its_shape_vocabulary_and_weights(model: Path) -> None:
    saved = layout.read_model(model, mx.float32)
    assert layout.is_saved_in(model, saved)
    saved.model.dtype = mx.bfloat16  # that it computes in
    assert layout.is_saved_in(model, saved)
    assert not layout.is_saved_in(model, network())
    assert not layout.is_saved_in(model, replace(saved, tokenizer=BYTES))
    weights = saved.model.named_parameters()
    name = min(weights)
    saved.model.load_weights([(name, weights[name].astype(mx.bfloat16))], strict=False)
    assert not layout.is_saved_in(model, saved)


@pytest.mark.slow
def test_a_quantized_and_an_imported_model_are_measured_alike(
    bundle: Path, tmp_path: Path, home: Path
) -> None:
    """As one example at a time, each row from its beginning."""
    imported = mlxchat.import_model(write_nanochat(tmp_path, "modern"), "theirs")
    for loaded in (imported, imported.quantize(8, group_size=32)):
        result = loaded.evaluate_core(MADE, bundle=bundle, memory_limit="2GB")
        items = read_items(Bundle(bundle), MADE, None)
        for score in result.scores:
            task, of_task = CORE_TASKS[score.task], items[score.task]
            examples = encode_examples(task, of_task, range(len(of_task)), loaded.tokenizer)
            alone = [
                verdict.right
                for example in examples
                for verdict in judge_examples(loaded.network, [example], BYTES.bos, share=False)
            ]
            assert sum(alone) == score.right
    assert len(list((home / "base_eval").glob("*.csv"))) == 2
