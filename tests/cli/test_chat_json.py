"""`mlxchat chat --json`, as a program runs it."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chats import END, Reciting, chat
from support.models import BYTES
from support.program import Program

from mlxchat.checkpoint import catalog
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli import chat as command
from mlxchat.ui.output import Output


class Chatting(Program):
    """`mlxchat chat --json` with a model that recites."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: object
    ) -> None:
        super().__init__(monkeypatch, capsys, "chat", "--json", "--temperature", "0")
        saved = SavedModel(model, BYTES, conversational=True)
        monkeypatch.setattr(catalog, "locate", lambda *_: Path("step_000001"))
        monkeypatch.setattr(command, "model_in_words", lambda *_: "tiny")
        monkeypatch.setattr(command, "load_model", lambda *_: saved)


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chatting:
    return Chatting(monkeypatch, capsys, Reciting("Fine.", END, sequence_len=64))


def test_a_prompt_is_answered_by_a_line(chatting: Chatting) -> None:
    code, out, err = chatting("-p", "Hi")
    assert (code, err) == (0, "Loading tiny.\n")
    assert json.loads(out) == {
        "content": "Fine.", "calculations": [], "truncated": False, "dropped": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("", "The message is empty."),
        ("x" * 90, "The message takes 94 tokens; the model's context is 64."),
    ],
)
def test_a_prompt_that_is_refused_is_answered_by_an_error(
    chatting: Chatting, prompt: str, problem: str
) -> None:
    code, out, err = chatting("-p", prompt)
    assert (code, err) == (1, "Loading tiny.\n")
    assert json.loads(out)["error"]["problem"] == problem
    assert json.loads(out)["error"]["remedy"]
    assert out.count("\n") == 1


def test_a_device_that_fails_is_told_in_a_line_and_by_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Reciting):
        def features(self, *_: object) -> None:
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    code, out, err = Chatting(monkeypatch, capsys, Failing("Fine."))("-p", "Hi")
    assert (code, err) == (70, "Loading tiny.\n")
    assert "out of memory" in json.loads(out)["error"]["problem"]


class Leaving(io.StringIO):
    """A pipe whose reader leaves after a line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


class Endless:
    """Standard input on which one message follows another."""

    sent = 0

    @property
    def buffer(self) -> Iterator[bytes]:
        while self.sent < 100:
            self.sent += 1
            yield b'{"content": "Hi"}\n'


def test_the_chat_ends_when_its_reader_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, endless = Leaving(), Endless()
    monkeypatch.setattr(sys, "stdin", endless)
    monkeypatch.setattr(sys, "stdout", Output(pipe))
    command._talk_to_program(chat(Reciting("Fine.")), None)
    assert json.loads(pipe.getvalue())["content"] == "Fine."
    assert endless.sent == 2
