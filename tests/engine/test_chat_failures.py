"""A device that fails, or memory that runs out, ends an answer and not the chat."""

import io
import json
from collections.abc import Iterator

import pytest
from support.chats import ASSISTANT, BOS, USER, USER_END, Reciting, chat, dialogue, say

from mlxchat.device_failures import FAILURES, explain
from mlxchat.engine.cache import KVCache
from mlxchat.errors import DeviceError, MemoryLimitError, MlxchatError
from mlxchat.runtime import mx
from mlxchat.ui import repl
from mlxchat.ui.json_chat import answer_lines
from mlxchat.ui.output import LiteralConsole

WATCHDOG = "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e)"
NO_ROOM = "[metal::malloc] Unable to allocate 9 bytes."
KINDS = [
    (RuntimeError(WATCHDOG), DeviceError, "because it delayed the display"),
    (RuntimeError(NO_ROOM), DeviceError, "out of memory"),
    (MemoryError(), MemoryLimitError, "machine is out of memory"),
    (
        MemoryError("Unable to allocate 9 GiB"),
        MemoryLimitError,
        "out of memory: Unable to allocate",
    ),
]


class Failing(Reciting):
    """A model that recites "one two", and raises ``error`` after pass number ``at``, once."""

    def __init__(self, error: Exception, at: int) -> None:
        super().__init__("one two")
        self._errors: Iterator[Exception] = iter([error])
        self.at = at

    def features(self, ids: mx.array, cache: KVCache) -> mx.array:
        computed = super().features(ids, cache)
        if len(self.passes) == self.at and (error := next(self._errors, None)):
            raise error
        return computed


@pytest.mark.parametrize(("error", "kind", "problem"), KINDS)
def test_a_failure_before_the_first_token_leaves_no_trace(
    error: Exception, kind: type[MlxchatError], problem: str
) -> None:
    talk = chat(Failing(error, at=10))
    say(talk, "Count")
    with pytest.raises(kind, match=problem) as raised:
        talk.say("Again")
    assert raised.value.__cause__ is error
    assert talk.messages == dialogue("Count", "one two")
    assert say(talk, "Again") == "one two"


@pytest.mark.parametrize(("error", "kind", "problem"), KINDS)
def test_a_failure_amid_an_answer_keeps_what_there_is(
    error: Exception, kind: type[MlxchatError], problem: str
) -> None:
    talk = chat(Failing(error, at=5))
    with pytest.raises(kind, match=problem):
        talk.say("Count")
    assert talk.messages == dialogue("Count", "one")
    assert say(talk, "Go on") == "one two"


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("error", [RuntimeError(WATCHDOG), MemoryError(), ValueError("a mistake")])
def test_nothing_that_was_read_before_a_failure_is_trusted(error: Exception, at: int) -> None:
    model = Failing(error, at)
    talk = chat(model)
    with pytest.raises((MlxchatError, ValueError)):
        talk.say("Count")
    talk.clear()
    model.passes.clear()
    assert say(talk, "Count") == "one two"
    assert model.passes[0] == [BOS, USER, *b"Count", USER_END, ASSISTANT]


def test_another_mistake_is_raised_as_it_is() -> None:
    mistake = RuntimeError("[matmul] Last dimension of first input must match")
    talk = chat(Failing(mistake, at=1))
    with pytest.raises(RuntimeError) as raised:
        talk.say("Count")
    assert raised.value is mistake


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.problem)
def test_remedies_in_a_chat_are_not_those_of_training(failure) -> None:
    for word in ("device_batch_size", "supervise", "resume", "depth", "vocab_size"):
        assert word not in failure.in_chat
    assert failure.in_chat.endswith(".")


def test_a_run_is_told_what_helps_a_run() -> None:
    error = explain(WATCHDOG)
    assert error is not None and "supervise" in error.remedy


def test_the_terminal_shows_it_and_goes_on() -> None:
    console = LiteralConsole(file=io.StringIO(), width=500)
    lines = iter(["Count", "Again"])
    talk = chat(Failing(RuntimeError(WATCHDOG), at=5))
    repl.converse(talk, "tiny", console, lambda _: next(lines, "/exit"))
    shown = console.file.getvalue()
    assert "\none\nmacOS stopped the GPU's work" in shown
    assert "Ask again." in shown
    assert shown.endswith("\none two\n")


def test_a_program_gets_a_line_and_goes_on() -> None:
    talk = chat(Failing(MemoryError(), at=5))
    sent = [json.dumps({"content": text}).encode() for text in ("Count", "Again")]
    told, answer = answer_lines(talk, sent)
    assert told["error"]["problem"] == "This machine is out of memory."
    assert told["error"]["remedy"]
    assert answer["content"] == "one two"
