"""A chat whose model calls the calculator."""

import io
import json
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from support.chats import END, Reciting, chat, fill, ids_of
from support.models import BYTES

from mlxchat.engine.cache import KVCache
from mlxchat.engine.chat import Chat
from mlxchat.runtime import mx
from mlxchat.tokenizer.messages import Conversation, Message, Part
from mlxchat.ui import repl
from mlxchat.ui.output import LiteralConsole

FORCED = ids_of("<|output_start|>24.0<|output_end|>")
DRAWN = [*ids_of("Half: <|python_start|>48/2<|python_end|>"), *[END] * len(FORCED), *b" That."]
CONTENT = (
    Part("text", "Half: "),
    Part("python", "48/2"),
    Part("python_output", "24.0"),
    Part("text", " That."),
)
SPOKEN = (Message("user", "Half of 48?"), Message("assistant", CONTENT))


def hear(talk: Chat, text: str = "Half of 48?") -> list[Part]:
    return list(talk.reply(text))


def prompt_after(talk: Chat) -> list[int]:
    """Return the prompt that one more message would make."""
    return BYTES.render_for_completion(Conversation((*talk.messages, Message("user", "On"))))


def test_the_result_is_forced_and_streamed() -> None:
    talk = chat(Reciting(DRAWN))
    pieces = hear(talk)
    assert [piece for piece in pieces if not piece.text] == [
        Part("python", ""),
        Part("python_output", ""),
    ]
    assert "".join(piece.text for piece in pieces) == "Half: 48/224.0 That."
    assert talk.messages == SPOKEN
    assert not talk.truncated


def test_say_returns_what_is_said_without_the_calculation() -> None:
    assert chat(Reciting(DRAWN)).say("Half of 48?") == "Half:  That."


def test_every_token_of_a_call_is_processed_once() -> None:
    model = Reciting(DRAWN)
    talk = chat(model)
    hear(talk)
    read = [token for tokens in model.passes for token in tokens]
    assert read == [*BYTES.render(Conversation(SPOKEN))[0]]
    model.passes.clear()
    expected = prompt_after(talk)
    hear(talk, "On")
    assert expected == read[:-1] + model.passes[0]


def test_a_saved_and_loaded_chat_makes_the_rendered_prompt(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    talk = chat(Reciting(DRAWN))
    hear(talk)
    talk.save(path)
    assert json.loads(path.read_text("utf-8"))["messages"][1]["content"] == [
        {"type": part.type, "text": part.text} for part in CONTENT
    ]
    model = Reciting("Yes.")
    other = chat(model)
    other.load(path)
    assert other.messages == SPOKEN
    expected = prompt_after(other)
    hear(other, "On")
    assert model.passes[0] == expected


def test_an_output_without_a_call_is_loaded(tmp_path: Path) -> None:
    parts = [{"type": "python_output", "text": "5"}, {"type": "text", "text": "Five."}]
    user = {"role": "user", "content": "2+3?"}
    talk = chat(Reciting("Yes."))
    talk.load(fill(tmp_path / "chat.json", user, {"role": "assistant", "content": parts}))
    assert talk.messages[1].content == (Part("python_output", "5"), Part("text", "Five."))


def stopped_after(count: int) -> tuple[Chat, Reciting]:
    """Close a reply after ``count`` pieces."""
    model = Reciting(DRAWN)
    talk = chat(model)
    with closing(talk.reply("Half of 48?")) as pieces:
        assert len(list(islice(pieces, count))) == count
    return talk, model


def interrupted_at(count: int) -> tuple[Chat, Reciting]:
    """Interrupt a reply in the pass number ``count``."""

    class Interrupted(Reciting):
        def features(self, ids: mx.array, cache: KVCache) -> mx.array:
            if len(self.passes) == count - 1:
                raise KeyboardInterrupt
            return super().features(ids, cache)

    model = Interrupted(DRAWN)
    talk = chat(model)
    with pytest.raises(KeyboardInterrupt):
        hear(talk)
    model.features = partial(Reciting.features, model)
    return talk, model


PASSES = 1 + len(DRAWN) + 1  # the prompt, every token, and the end
PIECES = len("Half: ") + 1 + len("48/2") + 1 + len("24.0") + len(" That.")


@pytest.mark.parametrize(
    ("leave", "count"),
    [
        *((stopped_after, count) for count in range(1, PIECES + 1)),
        *((interrupted_at, count) for count in range(1, PASSES + 1)),
    ],
)
def test_the_history_is_well_formed_wherever_an_answer_ends(
    leave, count: int, tmp_path: Path
) -> None:
    talk, model = leave(count)
    path = tmp_path / "chat.json"
    talk.save(path)
    other = chat(Reciting(""))
    other.load(path)
    assert other.messages == talk.messages
    if talk.messages:
        said = talk.messages[1].parts
        whole = CONTENT[: len(said)]
        assert [part.type for part in said] == [part.type for part in whole]
        assert all(a.text == b.text for a, b in zip(said, whole, strict=True) if "out" in a.type)
    expected = prompt_after(talk)
    model.passes.clear()
    hear(talk, "On")
    assert expected[-len(model.passes[0]) :] == model.passes[0]
    assert talk._held[: len(expected)] == expected


def test_an_output_cut_off_by_the_limit_is_dropped_and_its_call_stays() -> None:
    talk = chat(Reciting(DRAWN), max_tokens=14)
    pieces = hear(talk)
    assert pieces[-1] == Part("python_output", "2")
    assert talk.truncated
    assert talk.messages[1].content == CONTENT[:2]


def test_a_base_model_has_no_calculator() -> None:
    talk = chat(Reciting(DRAWN), conversational=False, max_tokens=len(DRAWN))
    assert not any(piece.type == "python_output" for piece in hear(talk))


def test_the_terminal_shows_the_calculation() -> None:
    console = LiteralConsole(file=io.StringIO())
    repl.answer_prompt(chat(Reciting(DRAWN)), "Half of 48?", console)
    assert console.file.getvalue() == "Half: [48/2 = 24.0] That.\n"
