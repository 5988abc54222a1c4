"""`mlxchat eval chat`: held-out conversations by hand, and the command from the outside."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from task_rows import ARC, BYTES, GSM8K, HUMAN_EVAL, MMLU, fill, network, saved_in

from mlxchat.cli.evaluating import evaluate_chat, selected
from mlxchat.data.chats.documents import ChatDocuments
from mlxchat.data.chats.sources import parse
from mlxchat.data.conversations import Conversation, Message, Part
from mlxchat.errors import MlxchatError
from mlxchat.evaluate import padding
from mlxchat.evaluate.bits import bits_per_byte
from mlxchat.evaluate.conversations import LONGEST_REPLY, held_out, replies
from mlxchat.evaluate.settings import TASK_NAMES, ChatEvalConfig
from mlxchat.evaluate.tasks.answers import write
from mlxchat.model.config import Architecture
from mlxchat.runtime import mx
from mlxchat.telemetry import Evaluated


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
    monkeypatch.setattr(padding, "AT_ONCE", at_once)
    model = network(sequence_len=96, arch=arch).model
    laid_out = held_out(CONVERSATIONS, BYTES, 96)
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
    assert held_out(CONVERSATIONS[:1], BYTES, length - 1).cut == 0
    assert held_out(CONVERSATIONS[:1], BYTES, length - 2).cut == 1


def test_answers_beyond_the_context() -> None:
    with pytest.raises(MlxchatError, match="None of the 1 conversations has an answer within"):
        held_out([dialogue("x" * 100, "y")], BYTES, 64)


# Replies


def test_short_last_replies_are_asked_for_after_all_that_was_said_before() -> None:
    long, most = dialogue("?", "x" * (LONGEST_REPLY + 1)), dialogue("?", "x" * LONGEST_REPLY)
    asked_for = replies([*CONVERSATIONS, long, most], BYTES)
    expected = [*CONVERSATIONS[:4], most]
    assert [exercise.prompt.messages for exercise in asked_for] == [
        conversation.messages[:-1] for conversation in expected
    ]
    for exercise, conversation in zip(asked_for, expected, strict=True):
        assert exercise.is_right(conversation.messages[-1].text)
        assert not exercise.is_right(conversation.messages[-1].text + " ")


def test_a_reply_that_goes_on_is_another() -> None:
    saved = network()
    [said] = write(saved, replies([dialogue("Hi", "")], BYTES), 16, LONGEST_REPLY + 1)
    assert len(said.answer.encode("utf-8", "replace")) > 0 and not said.right


# The choice of tasks


def test_by_default_the_tasks_whose_files_are_there(tmp_path: Path) -> None:
    tasks, [note] = selected(ChatEvalConfig(), tmp_path)
    assert tasks == ["spelling"] and str(tmp_path) in note and "--task-data" in note
    fill(tmp_path, "gsm8k", GSM8K)
    assert selected(ChatEvalConfig(), tmp_path) == (["gsm8k", "spelling"], [])
    fill(tmp_path, "humaneval", HUMAN_EVAL)
    tasks, [note] = selected(ChatEvalConfig(), tmp_path)
    assert tasks == ["gsm8k", "spelling"] and "--allow-code-execution" in note
    allowed = ChatEvalConfig(allow_code_execution=True)
    assert selected(allowed, tmp_path) == (["gsm8k", "humaneval", "spelling"], [])
    assert selected(ChatEvalConfig(data=["builtin"]), tmp_path) == ([], [])
    assert selected(ChatEvalConfig(data=["builtin"], tasks="mmlu"), tmp_path) == (["mmlu"], [])


@pytest.mark.parametrize("tasks", ["humaneval", "all"])
def test_code_is_not_run_unasked(tasks: str, tmp_path: Path) -> None:
    with pytest.raises(MlxchatError) as caught:
        selected(ChatEvalConfig(tasks=tasks), tmp_path)
    assert "runs the programs" in caught.value.problem
    assert "--allow-code-execution" in caught.value.remedy


# The command


def run(json: bool = True, checkpoint: Path | None = None, **given: object) -> None:
    evaluate_chat(ChatEvalConfig(**given), None, None, checkpoint, json)


@pytest.fixture
def task_data(home: Path) -> Path:
    folder = home / "task_data"
    fill(folder, "arc-easy", *[ARC] * 6)
    fill(folder, "arc-challenge", *[ARC] * 5)
    fill(folder, "mmlu", *[MMLU] * 3)
    fill(folder, "gsm8k", *[GSM8K] * 2)
    fill(folder, "humaneval", HUMAN_EVAL)
    return folder


def test_all_that_was_found(
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
        max_new_tokens=8,
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
        assert task["error"] == pytest.approx(math.sqrt(share * (1 - share) / task["problems"]))
    mean = sum(task["centered"] for task in tasks.values()) / 6
    assert facts["centered"] == pytest.approx(mean)
    found = facts["held_out"]
    of_sft = ChatDocuments([parse(str(chats))], seed=7, validation_share=0.6).held_out
    assert found["conversations"] == len(of_sft) > 5
    assert found["cut"] == 0 and found["loss"] > 0
    assert found["replies"]["problems"] == found["conversations"]
    assert "gsm8k: 2 questions" in said.err


def test_it_is_told_in_words(
    tmp_path: Path, task_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path / "model", network(sequence_len=64), conversational=False)
    run(json=False, checkpoint=saved, tasks="mmlu,arc-easy")
    said = capsys.readouterr()
    assert "never trained on conversations" in said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["task", "problems", "right", "score", "random", "centered"]
    assert "33.3%" in lines[1] and "25.0%" in lines[2]
    assert lines[3].startswith("Centered, mean over 2 tasks: ")
    assert lines[4] == "9 prompts did not fit 64 tokens: their beginning was cut."
    run(json=False, checkpoint=saved, data=["builtin"])
    said = capsys.readouterr()
    assert "held-out conversations: loss" in said.out and "word for word" in said.out
    assert "did not fit 64 tokens: their end was cut" in said.out


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["--tasks", "hellaswag"], "There is no task 'hellaswag'", "arc-easy"),
        (["--tasks", "humaneval"], "runs the programs", "--allow-code-execution"),
        (["--tasks", "mmlu"], "cais--mmlu/all/test", "--task-data"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl", "builtin"),
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
def test_usage_errors(arguments: list[str]) -> None:
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
