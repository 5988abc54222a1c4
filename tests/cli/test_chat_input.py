"""Hostile or accidental input to a chat: any bytes, overlong texts, files edited by hand."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chats import BOS, END, Reciting, chat, dialogue, say
from support.models import BYTES

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.cli.chat import talk
from mlxchat.config.inference import ChatSettings
from mlxchat.errors import MlxchatError
from mlxchat.ui import repl
from mlxchat.ui.console import console_for

CONTEXT = 64
ANSWER = "Fine."
ANY = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def piped(content: bytes, conversational: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What the command prints and warns of when that is its standard input."""
    said, warned = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    model = Reciting(ANSWER, END if conversational else BOS, CONTEXT)
    saved = SavedModel(model, BYTES, conversational)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
        patched.setattr(sys, "stdout", said)
        patched.setattr(sys, "stderr", warned)
        settings = ChatSettings(temperature=0, max_tokens=16)
        talk(saved, "tiny", settings, prompt=None, history=False)
    for stream in (said, warned):
        stream.flush()
        stream.seek(0)
    return said.read(), warned.read()


@ANY
@given(content=st.binary(max_size=80) | st.text(max_size=40).map(str.encode), talks=st.booleans())
def test_any_bytes_on_standard_input_are_answered_or_refused(
    content: bytes, talks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content.decode("utf-8", "replace")
    text = whole.strip() if talks else re.sub(r"\r?\n\Z", "", whole)
    try:
        said, warned = piped(content, talks, monkeypatch)
    except MlxchatError as error:
        assert error.remedy
        if not text:
            assert talks and error.problem == "The message is empty."
        else:
            assert f"the model's context is {CONTEXT}" in error.problem
            assert len(text.encode()) >= CONTEXT - 5
        return
    assert said.endswith("\n")
    assert not text or ANSWER.startswith(said[:-1])
    assert ("not all UTF-8" in warned) == (content.decode("utf-8", "replace").encode() != content)


@pytest.mark.parametrize(
    ("content", "talks", "read"),
    [
        (" Once\n\n", True, "Once"),
        (" Once ", False, " Once "),
        ("\n Once\n\n\n", False, "\n Once\n\n"),
        ("Once\r\n", False, "Once"),
        ("\n", False, ""),
    ],
)
def test_a_base_model_reads_all_but_one_final_newline(
    content: str, talks: bool, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(repl, "answer_prompt", lambda chat, prompt, console: asked.append(prompt))
        piped(content.encode(), talks, monkeypatch)
    assert asked == [read]


@pytest.mark.parametrize("talks", [True, False])
def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(
    talks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MlxchatError) as raised:
        piped(b"x" * 1000, talks, monkeypatch)
    tokens = 1004 if talks else 1001
    assert f"takes {tokens:,} tokens; the model's context is {CONTEXT}" in raised.value.problem
    assert f"fewer than {CONTEXT}" in raised.value.remedy


def test_turns_dropped_from_the_context_are_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    messages = [{"role": m.role, "content": m.text} for m in dialogue(*["0123456789"] * 8)]
    path.write_text(json.dumps({"messages": messages}))
    lines = iter([f"/load {path}", "And now?", "x" * 70, "Again"])
    stream = io.StringIO()
    talk = chat(Reciting(ANSWER, sequence_len=CONTEXT), max_tokens=16)
    repl.converse(talk, "tiny", console_for(stream), lambda _: next(lines, "/exit"))
    said = stream.getvalue()
    assert talk.dropped == 4
    assert said.count("no longer fits into the model's context") == 1
    assert f"takes 74 tokens; the model's context is {CONTEXT}" in said
    assert said.count(ANSWER) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "messages", "type", "text"]), inner)
    ),
    max_leaves=6,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["text", "python", "python_output"]),
            "text": st.text(max_size=9),
        }
    ),
    max_size=3,
)
CONTENT = st.text(max_size=20) | PARTS | JSON
MESSAGE = JSON | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": CONTENT}
)
WHOLE = [
    {"role": "user", "content": "Hi <|bos|>"},
    {"role": "assistant", "content": "Hello. \U0001f44b"},
    {"role": "user", "content": "Again"},
    {"role": "assistant", "content": ""},
]


@st.composite
def edited(draw: Any) -> bytes:
    """A conversation's file after a person was at it."""
    messages: list[Any] = list(WHOLE)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(messages)))
        messages[place : place + draw(st.integers(0, 1))] = draw(st.lists(MESSAGE, max_size=1))
    content = bytearray(json.dumps({"messages": messages}).encode())
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(content)


@ANY
@given(content=edited() | st.binary(max_size=60) | JSON.map(json.dumps).map(str.encode))
def test_a_file_edited_by_hand_is_loaded_or_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "edited.json"
    path.write_bytes(content)
    talk = chat(Reciting(ANSWER, sequence_len=512))
    say(talk, "Before")
    try:
        talk.load(path)
    except MlxchatError as error:
        assert str(path) in error.problem and error.remedy
        assert "\n" not in error.problem and error.problem.isprintable(), error.problem
        assert talk.messages == dialogue("Before", ANSWER)
    assert say(talk, "After") == ANSWER
    assert talk.messages[-2:] == dialogue("After", ANSWER)
    talk.save(path)
    other = chat(Reciting(ANSWER))
    other.load(path)
    assert other.messages == talk.messages
