"""`mlxchat eval chat`: held-out conversations by hand, and the command from the outside."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from support.marks import slow
from support.models import BYTES, network, saved_in
from support.saved_runs import trainer_fields
from support.task_rows import ARC, GSM8K, HUMAN_EVAL, MMLU, fill

from mlxchat.checkpoint import files, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.checkpoint.task_results import TaskResult, read_results
from mlxchat.cli.evaluate import eval_chat_command
from mlxchat.config.inference import TASK_NAMES, ChatEvalConfig
from mlxchat.data.chats.mixture import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.answers import Outcome, answer_problems, write_answers
from mlxchat.evaluate.loss import (
    BUILTIN_QUESTIONS,
    LONGEST_REPLY,
    bits_per_byte,
    builtin_questions,
    last_replies,
    lay_out,
)
from mlxchat.evaluate.suite import (
    PARTLY_TRAINED,
    SHARE_UNKNOWN,
    held_out_share,
    select_tasks,
)
from mlxchat.evaluate.tasks import Exercise, Problem
from mlxchat.home import Home
from mlxchat.model.config import Architecture
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated
from mlxchat.tokenizer.messages import Conversation, Message, Part
from mlxchat.train.stage import share_held_out


def dialogue(*contents: str | tuple[Part, ...]) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], said) for i, said in enumerate(contents)))


CONVERSATIONS = [
    dialogue("Hi", "Hello to you."),
    dialogue("What is 6 times 7?", (Part("python", "6*7"), Part("python_output", "42"))),
    dialogue("Naïve?", "Ja — très.", "And now, for something longer than that?", "No."),
    Conversation((Message("system", "Be brief."), *dialogue("Who?", "Me.").messages)),
    dialogue("Tell me all", "word " * 40),
]


# Loss


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("at_once", [100, 8192])
def test_loss_and_bits_are_those_by_hand(
    arch: Architecture, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.evaluate.answers.MAX_BATCH_TOKENS", at_once)
    model = network(sequence_len=96, arch=arch).model
    laid_out = lay_out(CONVERSATIONS, BYTES, 96)
    assert (laid_out.conversations, laid_out.cut) == (5, 1)
    *_, found = bits_per_byte(model.losses, laid_out.batches, len(laid_out.batches), BYTES)
    assert isinstance(found, Evaluated)
    nats, of_bytes, tokens, length = 0.0, 0.0, 0, 0
    for conversation in CONVERSATIONS:
        ids, mask = BYTES.render(conversation)
        ids, mask = ids[:97], mask[:97]
        logits = np.array(model(mx.array([ids[:-1]])), np.float64)[0]
        for place, (token, learned) in enumerate(zip(ids[1:], mask[1:], strict=True)):
            if learned:
                loss = math.log(np.exp(logits[place]).sum()) - logits[place, token]
                nats, tokens = nats + loss, tokens + 1
                if token < 256:
                    of_bytes, length = of_bytes + loss, length + 1
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(of_bytes / math.log(2) / length, rel=1e-5)


def test_a_conversation_that_just_fits_is_not_cut() -> None:
    length = len(BYTES.render(CONVERSATIONS[0])[0])
    assert lay_out(CONVERSATIONS[:1], BYTES, length - 1).cut == 0
    assert lay_out(CONVERSATIONS[:1], BYTES, length - 2).cut == 1


def test_conversations_without_an_answer_in_the_context_are_refused() -> None:
    with pytest.raises(MlxchatError, match="No held-out conversation has an answer within"):
        lay_out([dialogue("x" * 100, "y")], BYTES, 64)


# Replies


def test_short_last_replies_are_asked_for_after_all_that_was_said_before() -> None:
    long, most = dialogue("?", "x" * (LONGEST_REPLY + 1)), dialogue("?", "x" * LONGEST_REPLY)
    asked_for = last_replies([*CONVERSATIONS, long, most], BYTES)
    expected = [*CONVERSATIONS[:4], most]
    assert [exercise.prompt.messages for exercise in asked_for] == [
        conversation.messages[:-1] for conversation in expected
    ]
    for exercise, conversation in zip(asked_for, expected, strict=True):
        rendered = BYTES.render(conversation)[0]
        reply = rendered[len(BYTES.render_for_completion(exercise.prompt)) : -1]
        assert exercise.is_right(BYTES.decode(reply, keep_special=True))
        assert not exercise.is_right(conversation.messages[-1].text + " ")


def test_a_reply_that_goes_on_is_another() -> None:
    saved = network()
    [said] = write_answers(saved, last_replies([dialogue("Hi", "")], BYTES), 16, LONGEST_REPLY + 1)
    assert len(said.answer.encode("utf-8", "replace")) > 0 and not said.right


# The choice of tasks


def test_by_default_the_tasks_whose_files_are_there(tmp_path: Path) -> None:
    tasks, [note] = select_tasks(ChatEvalConfig(), tmp_path)
    assert tasks == ["spelling"] and str(tmp_path) in note and "`task_data`" in note
    fill(tmp_path, "gsm8k", GSM8K)
    assert select_tasks(ChatEvalConfig(), tmp_path) == (["gsm8k", "spelling"], [])
    fill(tmp_path, "humaneval", HUMAN_EVAL)
    tasks, [note] = select_tasks(ChatEvalConfig(), tmp_path)
    assert tasks == ["gsm8k", "spelling"] and "`allow_code_execution`" in note
    allowed = ChatEvalConfig(allow_code_execution=True)
    assert select_tasks(allowed, tmp_path) == (["gsm8k", "humaneval", "spelling"], [])
    assert select_tasks(ChatEvalConfig(data=["builtin"]), tmp_path) == ([], [])
    assert select_tasks(ChatEvalConfig(data=["builtin"], tasks="mmlu"), tmp_path) == (["mmlu"], [])
    both = ChatEvalConfig(data=["builtin"], task_data=tmp_path, allow_code_execution=True)
    assert select_tasks(both, tmp_path) == (["gsm8k", "humaneval", "spelling"], [])


def test_a_folder_that_is_named_holds_a_task(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match="has no task files") as caught:
        select_tasks(ChatEvalConfig(task_data=tmp_path / "none"), tmp_path / "none")
    assert "cais--mmlu/all/test" in caught.value.remedy
    assert select_tasks(ChatEvalConfig(task_data=tmp_path, tasks="spelling"), tmp_path) == (
        ["spelling"],
        [],
    )


# What counts as held out


def fine_tuned(folder: Path, share: float, stage: str = "fine-tuning") -> Path:
    """The directory of a checkpoint, as far as training says what was held out."""
    saved_in(folder, network())
    fields = trainer_fields("sft" if stage == "fine-tuning" else "classic")
    if stage == "fine-tuning":
        fields["settings"]["validation_share"] = share
    (folder / layout.TRAINER).write_text(json.dumps(fields), "utf-8")
    files.write_checksums(folder)
    return folder


@pytest.mark.parametrize(
    ("given", "share", "notes"),
    [
        (None, 0.1, []),
        (0.1, 0.1, []),
        (0.05, 0.05, []),
        (0.2, 0.2, [PARTLY_TRAINED.format(0.1, 0.2)]),
    ],
)
def test_the_share_that_fine_tuning_held_out_is_used(
    given: float | None, share: float, notes: list[str], tmp_path: Path
) -> None:
    own = share_held_out(fine_tuned(tmp_path / "model", 0.1), Home(tmp_path))
    assert held_out_share(ChatEvalConfig(validation_share=given), own, True) == (share, notes)


def test_an_unknown_held_out_share_is_noted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    base = share_held_out(fine_tuned(tmp_path / "base", 0.1, stage="pretraining"), home)
    assert held_out_share(ChatEvalConfig(), base, False) == (0.02, [])
    foreign = share_held_out(saved_in(tmp_path / "foreign", network()), home)
    assert held_out_share(ChatEvalConfig(), foreign, True) == (0.02, [SHARE_UNKNOWN.format(0.02)])
    assert held_out_share(ChatEvalConfig(validation_share=0.3), foreign, True) == (0.3, [])
    trainer = fine_tuned(tmp_path / "old", 0.1) / layout.TRAINER
    trainer.write_text('{"format": 1}')
    files.write_checksums(trainer.parent)
    old = share_held_out(trainer.parent, home)
    assert held_out_share(ChatEvalConfig(), old, True)[0] == 0.02


@pytest.mark.parametrize("tasks", ["humaneval", "all"])
def test_code_is_not_run_unasked(tasks: str, tmp_path: Path) -> None:
    with pytest.raises(MlxchatError) as caught:
        select_tasks(ChatEvalConfig(tasks=tasks), tmp_path)
    assert "runs programs" in caught.value.problem
    assert "`allow_code_execution`" in caught.value.remedy


# The command


def run(json: bool = True, checkpoint: Path | None = None, **given: object) -> None:
    eval_chat_command(checkpoint=checkpoint, json=json, config=ChatEvalConfig(**given))


@pytest.fixture
def task_data(home: Path) -> Path:
    folder = home / "task_data"
    fill(folder, "arc-easy", *[ARC] * 6)
    fill(folder, "arc-challenge", *[ARC] * 5)
    fill(folder, "mmlu", *[MMLU] * 3)
    fill(folder, "gsm8k", *[GSM8K] * 2)
    fill(folder, "humaneval", HUMAN_EVAL)
    return folder


def test_json_has_every_loss_score_and_reply(
    tmp_path: Path, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path / "model", network())
    chats = tmp_path / "chats.jsonl"
    rows = [[["Say a", "a"], ["Count", f"{i}, {i + 1}"]][i % 2] for i in range(40)]
    chats.write_text(
        "".join(
            json.dumps([{"role": "user", "content": q}, {"role": "assistant", "content": a}]) + "\n"
            for q, a in rows
        )
    )
    run(
        checkpoint=saved,
        tasks="all",
        data=[str(chats)],
        validation_share=0.6,
        max_problems=4,
        max_tokens=8,
        allow_code_execution=True,
    )
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["model"] == str(saved) and facts["conversational"] is True
    tasks = {task["task"]: task for task in facts["tasks"]}
    assert tuple(tasks) == TASK_NAMES
    assert [task["problems"] for task in tasks.values()] == [4, 4, 3, 2, 1, 4]
    assert tasks["arc-easy"]["random"] == pytest.approx(1 / 3)
    for task in tasks.values():
        share = task["right"] / task["problems"]
        assert task["score"] == share
        assert task["centered"] == pytest.approx((share - task["random"]) / (1 - task["random"]))
        assert task["error"] > 0
        assert task["low"] <= share <= task["high"]
    mean = sum(task["centered"] for task in tasks.values()) / 6
    assert facts["centered"] == pytest.approx(mean)
    found = facts["held_out"]
    of_sft = ChatDocuments([parse(str(chats))], seed=7, validation_share=0.6).held_out
    assert found["conversations"] == 4 < len(of_sft)
    answers = (sum(BYTES.render(conversation)[1]) for conversation in of_sft[:4])
    assert found["tokens"] == sum(answers)
    assert found["cut"] == 0 and found["loss"] > 0
    assert found["replies"]["problems"] == found["conversations"]
    assert "gsm8k: 2 questions" in said.err


@pytest.mark.slow
def test_the_results_are_shown_in_words(
    tmp_path: Path, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path / "model", network(sequence_len=64), conversational=False)
    run(json=False, checkpoint=saved, tasks="mmlu,arc-easy")
    said = capsys.readouterr()
    assert "never trained on conversations" in said.err
    lines = said.out.splitlines()
    assert lines[0].split() == "task problems right score (95% interval) random centered".split()
    assert "33.3%" in lines[1] and "25.0%" in lines[2]
    assert all(re.search(r"\d\.\d% \(\d+\.\d% to \d+\.\d%\) ", line) for line in lines[1:3])
    assert lines[3].startswith("Mean centered score of 2 tasks: ")
    assert lines[4].startswith("Results: ") and len(lines) == 5
    run(json=False, checkpoint=saved, data=["builtin"], max_problems=20)
    said = capsys.readouterr()
    assert "held-out conversations: loss" in said.out and "word for word" in said.out
    assert "did not fit into 64 tokens and were truncated" in said.out


@pytest.mark.slow
def test_the_built_in_corpus_has_questions_that_no_conversation_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path / "model", network())
    run(checkpoint=saved, data=["builtin"], max_problems=3)
    facts = json.loads(capsys.readouterr().out)
    assert facts["complete"] and facts["tasks"] == []
    assert facts["builtin_questions"]["problems"] == 3
    [kept] = kept_of(facts["kept"])
    assert (kept.task, kept.asked, kept.max_problems) == ("builtin questions", 3, 3)
    assert facts["builtin_questions"]["right"] == 0
    assert facts["held_out"]["conversations"] == 3


def test_built_in_questions_are_answered_word_for_word() -> None:
    exercises = builtin_questions(None)
    expected = held_out_questions(BUILTIN_QUESTIONS)
    for exercise, question in zip(exercises, expected, strict=True):
        assert exercise.prompt.messages == (Message("user", question.prompt),)
        assert exercise.is_right(f" {question.answer}\n")
        assert not exercise.is_right(question.answer[:-1])
    assert [exercise.prompt for exercise in builtin_questions(7)] == [
        exercise.prompt for exercise in exercises[:7]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [slow(True), False])
def test_ctrl_c_loses_no_score_that_is_complete(
    as_json: bool,
    home: Path,
    tmp_path: Path,
    task_data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(saved: SavedModel, asked: list[Problem], *limits: int) -> Iterator[Outcome]:
        if isinstance(asked[0], Exercise):
            raise KeyboardInterrupt
        yield from answer_problems(saved, asked, *limits)

    monkeypatch.setattr("mlxchat.evaluate.suite.answer_problems", interrupted)
    saved = saved_in(tmp_path / "model", network())
    with pytest.raises(typer.Exit) as caught:
        run(as_json, checkpoint=saved, tasks="arc-easy,mmlu,gsm8k", data=["builtin"])
    assert caught.value.exit_code == 130
    said = capsys.readouterr()
    assert "Interrupted" in said.err
    [kept] = (home / "chat_eval").iterdir()
    assert [each.task for each in kept_of(kept)] == ["arc-easy", "mmlu"]
    if as_json:
        facts = json.loads(said.out)
        assert [task["task"] for task in facts["tasks"]] == ["arc-easy", "mmlu"]
        assert not facts["complete"]
        assert facts["held_out"] is facts["builtin_questions"] is None
    else:
        assert "arc-easy" in said.out and "gsm8k" not in said.out
        assert "Mean centered score of 2 tasks" in said.out


def kept_of(path: object) -> list[TaskResult]:
    return list(read_results(Path(str(path))))


def test_what_was_asked_is_kept_with_its_settings(
    home: Path, tmp_path: Path, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path / "model", network())
    asked = {"checkpoint": saved, "tasks": "arc-easy,gsm8k,arithmetic-1", "max_tokens": 4}
    run(**asked, max_problems=2)
    facts = json.loads(capsys.readouterr().out)
    assert Path(facts["kept"]).parent == home / "chat_eval"
    assert Path(facts["kept"]).name.startswith("model_000000_")
    easy, written, made_up = kept_of(facts["kept"])
    assert [each.task for each in (easy, written, made_up)] == [
        "arc-easy",
        "gsm8k",
        "arithmetic-1",
    ]
    [told, *_] = facts["tasks"]
    assert (easy.right, easy.asked, easy.random) == (told["right"], 2, told["random"])
    assert (easy.low, easy.high) == (told["low"], told["high"])
    assert easy.low <= easy.share <= easy.high and easy.high - easy.low > 0.3
    assert (easy.max_problems, easy.max_tokens, easy.temperature) == (2, None, None)
    assert (written.max_problems, written.max_tokens, written.temperature) == (2, 4, 0.0)
    assert easy.dtype == "float32" and abs(easy.time - time.time()) < 60
    run(**{**asked, "tasks": "arc-easy"}, json=False)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"Results: {facts['kept']}"
    limits = [(each.task, each.max_problems, each.asked) for each in kept_of(facts["kept"])]
    assert limits[:3] == [("arc-easy", 2, 2), ("arc-easy", None, 6), ("gsm8k", 2, 2)]


def test_of_an_interrupted_task_nothing_is_kept(
    home: Path, tmp_path: Path, task_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(saved: SavedModel, asked: list[Problem], *limits: int) -> Iterator[Outcome]:
        first, *others = answer_problems(saved, asked, *limits)
        yield first
        if len(asked) == 3:  # of mmlu
            raise KeyboardInterrupt
        yield from others

    monkeypatch.setattr("mlxchat.evaluate.suite.answer_problems", interrupted)
    saved = saved_in(tmp_path / "model", network())
    with pytest.raises(typer.Exit):
        run(checkpoint=saved, tasks="arc-easy,mmlu")
    [kept] = (home / "chat_eval").iterdir()
    assert [(each.task, each.asked) for each in kept_of(kept)] == [("arc-easy", 6)]


def test_a_disk_that_cannot_be_written_loses_no_printed_result(
    home: Path, tmp_path: Path, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path / "model", network())
    (home / "chat_eval").write_text("in the way")
    run(checkpoint=saved, tasks="arc-easy")
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["complete"] and facts["kept"] is None and facts["tasks"][0]["problems"] == 6
    [warned] = [line for line in said.err.splitlines() if line.startswith("Warning")]
    assert "The results were not kept. " in warned and "chat_eval" in warned


def test_missing_data_is_named(tmp_path: Path) -> None:
    saved = saved_in(tmp_path / "model", network())
    with pytest.raises(MlxchatError, match=r"nowhere\.jsonl does not exist"):
        run(checkpoint=saved, data=["nowhere.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["--tasks", "hellaswag"], "There is no task 'hellaswag'", "arc-easy"),
        (["--tasks", "humaneval"], "runs programs", "--allow-code-execution"),
        (["--tasks", "mmlu"], "cais--mmlu/all/test", "--task-data"),
        (["--task-data", "nowhere"], "has no task files", "--tasks spelling"),
        (["--tasks", "spelling"], "There is no trained model", "mlxchat quickstart"),
    ],
)
def test_errors_are_two_lines(arguments: list[str], problem: str, remedy: str) -> None:
    program = [sys.executable, "-m", "mlxchat", "eval", "chat", *arguments]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    first, second = result.stderr.splitlines()
    assert problem in first and remedy in second


@pytest.mark.parametrize(
    "arguments",
    [["--max-problems", "0"], ["--batch-size", "0"], ["--checkpoint", "x", "--model-tag", "y"]],
)
def test_usage_errors_name_the_option(arguments: list[str]) -> None:
    program = [sys.executable, "-m", "mlxchat", "eval", "chat", *arguments]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and arguments[0] in result.stderr


def test_help_imports_no_arrays() -> None:
    script = (
        "import sys, typer.testing\n"
        "from mlxchat.cli.app import app\n"
        "result = typer.testing.CliRunner().invoke(app, ['eval', 'chat', '--help'])\n"
        "assert result.exit_code == 0 and '--allow-code' in result.output, result.output\n"
        "heavy = {'mlx', 'mlx.core', 'pyarrow', 'httpx', 'tiktoken', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
