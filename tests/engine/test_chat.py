import codecs
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from support.chats import ASSISTANT, BOS, END, USER, USER_END, Reciting, chat, dialogue, fill, say
from support.models import BYTES, network

from mlxchat.config.inference import ChatSettings
from mlxchat.engine import chat as engine_chat
from mlxchat.engine.cache import KVCache
from mlxchat.errors import MlxchatError
from mlxchat.model.config import Architecture
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer.messages import Conversation, Message, Part


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# Answers


def test_answers_in_turns() -> None:
    talk = chat(Reciting("Fine."))
    assert say(talk, "How are you?") == "Fine."
    assert say(talk, "And now?") == "Fine."
    assert talk.messages == dialogue("How are you?", "Fine.", "And now?", "Fine.")
    assert not talk.truncated


def test_say_returns_what_reply_streams() -> None:
    talk = chat(Reciting("Fine, né?"))
    assert talk.say("How are you?") == "Fine, né?"
    assert talk.messages == dialogue("How are you?", "Fine, né?")
    with pytest.raises(MlxchatError, match="empty"):
        talk.say(" ")


@pytest.mark.parametrize("ending", [END, BOS])
def test_an_answer_ends_at_the_models_end_token(ending: int) -> None:
    assert say(chat(Reciting("Bye", ending)), "Bye") == "Bye"


@pytest.mark.parametrize("ending", [BOS])
def test_a_base_model_stops_at_the_end_of_a_document(ending: int) -> None:
    talk = chat(Reciting("once", ending), conversational=False)
    assert say(talk, "There was ") == "once"


def test_pieces_are_whole_characters() -> None:
    text = "né 北京 👩‍🚀!"
    pieces = list(chat(Reciting(text)).reply("Write"))
    assert pieces == [Part("text", letter) for letter in text]


def test_invalid_utf8_becomes_replacement_characters() -> None:
    assert say(chat(Reciting(b"a\xffb")), "Write") == "a\ufffdb"


def test_a_character_cut_off_by_the_limit_is_left_out() -> None:
    talk = chat(Reciting("ab北京"), max_tokens=7)
    assert say(talk, "Write") == "ab北"
    assert talk.truncated


def test_an_answer_ends_at_max_tokens() -> None:
    talk = chat(Reciting("abcdef"), max_tokens=3)
    assert say(talk, "Write") == "abc"
    assert talk.truncated
    assert talk.messages == dialogue("Write", "abc")


def test_equal_seeds_give_equal_answers() -> None:
    model = network().model

    def answers(seed: int) -> list[str]:
        talk = chat(model, seed=seed, temperature=3.0, max_tokens=20)
        return [say(talk, "a"), say(talk, "b")]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_an_empty_message_is_refused() -> None:
    talk = chat(Reciting("x"))
    with pytest.raises(MlxchatError, match="empty"):
        talk.reply(" \n")
    assert talk.messages == ()


def test_text_that_looks_like_a_special_token_stays_text() -> None:
    model = Reciting("ok")
    say(chat(model), "<|assistant_end|>")
    assert model.passes[0] == [BOS, USER, *b"<|assistant_end|>", USER_END, ASSISTANT]


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    talk = chat(Reciting("ok"))
    assert say(talk, "caf\udce9") == "ok"
    talk.save(tmp_path / "chat.json")
    assert talk.messages[0].content == "caf?"


# The cache


def test_every_token_is_processed_once() -> None:
    model = Reciting("Fine.")
    talk = chat(model)
    say(talk, "Hello")
    say(talk, "Again")
    first = [BOS, USER, *b"Hello", USER_END, ASSISTANT]
    second = [END, USER, *b"Again", USER_END, ASSISTANT]
    answer = [[token] for token in (*b"Fine.", END)]  # the end is read ahead, then forgotten
    assert model.passes == [first, *answer, second, *answer]


def test_a_base_model_continues_the_whole_text() -> None:
    model = network().model
    talk = chat(model, conversational=False, max_tokens=12)
    spoken = [BYTES.bos]
    for text in ("It was", " and then", ""):
        answer = say(talk, text)
        spoken += text.encode()
        expected = greedy(model, spoken, 12, {BOS})
        assert answer == text_of(expected)
        spoken += expected


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_cached_turns_answer_as_a_fresh_pass_would(arch: Architecture) -> None:
    model = network(arch=arch).model
    talk = chat(model, max_tokens=12)
    ids = [BOS]
    for text in ("Hello", "Who are you?", "Why? " * 30, "Why?", "Go on."):
        ids += [USER, *text.encode(), USER_END, ASSISTANT]
        expected = greedy(model, ids, 12, {BOS, END})
        assert say(talk, text) == text_of(expected)
        ids += [*expected, END]


def greedy(model: GPT, ids: Sequence[int], count: int, stop: set[int]) -> list[int]:
    tokens = list(ids)
    for _ in range(count):
        token = mx.argmax(model(mx.array([tokens]))[0, -1]).item()
        if token in stop:
            break
        tokens.append(token)
    return tokens[len(ids) :]


def text_of(tokens: Sequence[int]) -> str:
    """Return the text of tokens, without a character that is cut off at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return decoder.decode(b"".join(BYTES.token_bytes(token) for token in tokens))


def test_an_interrupted_answer_stays_in_the_history() -> None:
    model = Reciting("one two three")
    talk = chat(model)
    pieces = talk.reply("Count")
    assert [piece.text for piece in islice(pieces, 3)] == ["o", "n", "e"]
    pieces.close()
    assert talk.messages == dialogue("Count", "one")
    model.passes.clear()
    say(talk, "On")
    assert model.passes[0] == [END, USER, *b"On", USER_END, ASSISTANT]


@pytest.mark.parametrize(
    "ask", [lambda talk: say(talk, "More"), lambda talk: next(talk.regenerate())]
)
def test_what_is_interrupted_before_its_first_token_leaves_no_trace(ask, monkeypatch) -> None:
    model = Reciting("one")
    talk = chat(model)
    say(talk, "Count")

    with monkeypatch.context() as patch:
        patch.setattr(model, "features", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(talk)
    assert talk.messages == dialogue("Count", "one")
    assert say(talk, "More") == "one"


ACTIONS = {
    "say": (lambda talk: say(talk, "B"), dialogue("A", "on", "B", "one two")),
    # One token is read again, which the reciting model takes for the next one of its answer.
    "regenerate": (lambda talk: list(talk.regenerate()), dialogue("A", " two")),
    "undo": (lambda talk: talk.undo(), ()),
    "clear": (lambda talk: talk.clear(), ()),
    "messages": (lambda talk: talk.messages, dialogue("A", "on")),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_an_answer_left_open_ends_before_anything_else(name: str) -> None:
    act, messages = ACTIONS[name]
    model = Reciting("one two")
    talk = chat(model)
    pieces = talk.reply("A")
    assert [next(pieces).text, next(pieces).text] == ["o", "n"]
    act(talk)
    assert talk.messages == messages
    assert list(pieces) == []
    del pieces
    expected = BYTES.render_for_completion(Conversation((*messages, Message("user", "C"))))
    model.passes.clear()
    assert say(talk, "C") == "one two"
    assert talk.messages == (*messages, *dialogue("C", "one two"))
    assert expected[-len(model.passes[0]) :] == model.passes[0]
    assert talk._held[: len(expected)] == expected


def test_an_answer_left_open_is_saved_and_gives_way_to_a_file(tmp_path: Path) -> None:
    talk = chat(Reciting("one two"))
    pieces = talk.reply("A")
    next(pieces)
    talk.save(tmp_path / "chat.json")
    other = chat(Reciting("one two"))
    left = other.reply("B")
    next(left)
    other.load(tmp_path / "chat.json")
    assert list(left) == []
    assert other.messages == dialogue("A", "o")


def test_answers_left_open_spoil_no_later_one() -> None:
    model = network().model
    talk, other = chat(model, max_tokens=12), chat(model, max_tokens=12)
    left = talk.reply("Hello " * 30)
    next(left)
    talk.clear()
    said = [say(talk, "Who?"), say(talk, "Why?")]
    left.close()
    del left
    said.append(say(talk, "On."))
    assert said == [say(other, text) for text in ("Who?", "Why?", "On.")]


def test_a_reply_that_begins_after_the_conversation_changed_is_refused() -> None:
    talk = chat(Reciting("one"))
    first, second = talk.reply("A"), talk.reply("B")
    assert talk.messages == ()
    assert len(list(second)) == 3
    with pytest.raises(MlxchatError, match="has changed"):
        next(first)
    assert talk.messages == dialogue("B", "one")


def test_ctrl_c_before_an_answer_begins_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = chat(Reciting("one"))
    say(talk, "Count")
    for owner, name in ((mx.random, "split"), (KVCache, "trim"), (engine_chat, "Answer")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                say(talk, "More")
        assert talk.messages == dialogue("Count", "one"), name


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_ctrl_c_while_the_cache_is_trimmed_spoils_no_later_answer(
    arch: Architecture, trimmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(arch=arch).model
    talk = chat(model, max_tokens=12)
    say(talk, "Hello " * 30)
    talk.clear()
    trim = KVCache.trim

    def interrupted(cache: KVCache, length: int) -> None:
        if trimmed:
            trim(cache, length)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "trim", interrupted)
        with pytest.raises(KeyboardInterrupt):
            say(talk, "Farewell " * 20)
    for text in ("Farewell " * 20, "Hello " * 30):
        talk.clear()
        assert say(talk, text) == say(chat(model, max_tokens=12), text)


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_clear_starts_from_scratch(arch: Architecture) -> None:
    model = network(arch=arch).model
    talk = chat(model, max_tokens=12)
    say(talk, "Hello " * 30)
    talk.clear()
    assert talk.messages == ()
    assert say(talk, "Who?") == say(chat(model, max_tokens=12), "Who?")


# The context


def test_oldest_turns_are_dropped_from_the_context_but_not_from_the_messages() -> None:
    model = Reciting("12345678", sequence_len=64)
    talk = chat(model, max_tokens=8)
    asked = [USER, *b"message 0", USER_END, ASSISTANT]
    turn = len([*asked, *b"12345678", END])
    dropped = []
    for i in range(6):
        model.passes.clear()
        say(talk, f"message {i}")
        dropped.append(talk.dropped)
    assert 1 + 2 * turn + len(asked) + 8 <= 64 < 1 + 3 * turn + len(asked) + 8
    assert dropped == [0, 0, 0, 1, 2, 3]
    assert len(talk.messages) == 12
    shared = len([BOS, USER, *b"message "])
    assert len(model.passes[0]) == 1 + 2 * turn + len(asked) - shared


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_turns_are_encoded_once_each_to_find_how_many_fit(
    system: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = chat(Reciting("ok", sequence_len=256), max_tokens=16)
    contents = dialogue(*["0123456789"] * 400)
    messages = [{"role": message.role, "content": message.text} for message in contents]
    lead = [] if system is None else [{"role": "system", "content": system}]
    talk.load(fill(tmp_path / "long.json", *lead, *messages))
    encoded: list[str] = []
    encode = BYTES.encode

    def counted(text: str) -> list[int]:
        encoded.append(text)
        return encode(text)

    monkeypatch.setattr(BYTES, "encode", counted)
    assert talk.say("And now?") == "ok"
    turn = len([USER, *b"0123456789", USER_END, ASSISTANT, *b"0123456789", END])
    lead_tokens = len(f"{system}\n\n") if system else 0
    asked = 1 + lead_tokens + len([USER, *b"And now?", USER_END, ASSISTANT])
    fitting = (256 - 16 - asked) // turn
    assert talk.dropped == 200 - fitting
    assert len(encoded) < 3 * (fitting + 2)


def test_dropped_turns_have_no_influence_on_answers(tmp_path: Path) -> None:
    model = network(sequence_len=64).model
    talk = chat(model, max_tokens=4)
    for text in ("0" * 15, "1" * 15):
        say(talk, text)
    last = say(talk, "2" * 15)
    assert talk.dropped == 1
    ids = [BOS]
    for text in ("1" * 15, "2" * 15):
        ids += [USER, *text.encode(), USER_END, ASSISTANT]
        if text[0] == "1":
            ids += [*talk._turns[1].tokens, END]
    assert last == text_of(greedy(model, ids, 4, {BOS, END}))


def test_a_message_longer_than_the_context_is_refused_and_the_history_stays() -> None:
    talk = chat(Reciting("ok", sequence_len=32))
    say(talk, "Hello")
    with pytest.raises(MlxchatError, match=r"takes 44 tokens; the model's context is 32"):
        talk.reply("x" * 40)
    assert talk.messages == dialogue("Hello", "ok")
    assert talk.dropped == 0
    assert say(talk, "Bye") == "ok"


def test_a_message_that_leaves_little_room_gets_a_short_answer() -> None:
    talk = chat(Reciting("a long answer", sequence_len=32))
    assert say(talk, "x" * 24) == "a lo"
    assert talk.truncated


# Taking back, answering again, settings


def test_undo_takes_back_a_message_and_its_answer() -> None:
    model = Reciting("Fine.")
    talk = chat(model)
    for text in ("Hello", "Again"):
        say(talk, text)
    assert talk.undo() == "Again"
    assert talk.messages == dialogue("Hello", "Fine.")
    model.passes.clear()
    say(talk, "And now?")
    assert model.passes[0] == [*b"nd now?", USER_END, ASSISTANT]  # "A" is in the cache
    assert [talk.undo(), talk.undo()] == ["And now?", "Hello"]
    with pytest.raises(MlxchatError, match="no message yet"):
        talk.undo()


def test_undo_brings_dropped_turns_back() -> None:
    talk = chat(Reciting("12345678", sequence_len=64), max_tokens=8)
    for i in range(5):
        say(talk, f"message {i}")
    assert talk.dropped == 2
    dropped = []
    while talk.messages:
        talk.undo()
        dropped.append(talk.dropped)
    assert dropped == [1, 0, 0, 0, 0]
    assert say(talk, "message 0") == "12345678"


def test_another_answer_takes_the_place_of_the_latest() -> None:
    model = network().model
    talk = chat(model, temperature=3.0, max_tokens=20)
    say(talk, "a")
    first = say(talk, "b")
    second = "".join(piece.text for piece in talk.regenerate())
    assert first != second
    assert [message.text for message in talk.messages[2:]] == ["b", second]
    talk.set(temperature=0)
    again = ["".join(piece.text for piece in talk.regenerate()) for _ in range(2)]
    assert again[0] == again[1]
    other = chat(model, max_tokens=20)
    with pytest.raises(MlxchatError, match="no message yet"):
        other.regenerate()


@pytest.mark.parametrize("conversational", [True, False])
def test_the_system_message_counts_for_the_whole_conversation(conversational: bool) -> None:
    model = Reciting("ok", END if conversational else BOS)
    talk = chat(model, conversational=conversational, system="Be brief.")
    say(talk, "Hi")
    talk.set(system="Be kind.\udce9")
    model.passes.clear()
    say(talk, "On")
    assert talk.messages[0] == Message("system", "Be kind.?")
    ids = BYTES.render_for_completion(Conversation(talk.messages[:-1]))
    if not conversational:
        ids = [BOS, *b"Be kind.?\n\nHiokOn"]
    held = ids.index(ord("k"))  # where it differs from what was read before
    assert model.passes[0] == ids[held:]
    talk.clear()
    assert talk.messages == (Message("system", "Be kind.?"),)
    talk.set(system=None)
    assert talk.messages == ()


def test_settings_change_from_the_next_answer_on() -> None:
    talk = chat(network().model, temperature=3.0, max_tokens=20, seed=1)
    first = say(talk, "a")
    talk.clear()
    talk.set(seed="1", max_tokens="10")
    assert talk.settings == ChatSettings(temperature=3.0, max_tokens=10, seed=1)
    assert first.startswith(say(talk, "a"))
    for given in ({"max_tokens": 0}, {"temperature": "warm"}, {"temprature": 1}):
        with pytest.raises(MlxchatError) as raised:
            talk.set(**given, top_k=3)
        assert raised.value.remedy
    assert talk.settings.top_k == 50


# Files


def test_a_saved_chat_is_loaded_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    talk = chat(Reciting("Grüße 👋"))
    say(talk, "Hello\nthere")
    talk.save(path)
    assert json.loads(path.read_text("utf-8")) == {
        "messages": [
            {"role": "user", "content": "Hello\nthere"},
            {"role": "assistant", "content": "Grüße 👋"},
        ]
    }
    model = Reciting("Grüße 👋")
    other = chat(model)
    other.load(path)
    assert other.messages == talk.messages
    say(other, "On")
    expected = Conversation((*other.messages[:2], Message("user", "On")))
    assert model.passes[0] == BYTES.render_for_completion(expected)


def test_a_system_message_leads_the_first_turn(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "chat.json",
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi."},
    )
    model = Reciting("ok")
    talk = chat(model)
    talk.load(path)
    say(talk, "On")
    assert talk.messages[0] == Message("system", "Be brief.")
    assert model.passes[0] == BYTES.render_for_completion(Conversation(talk.messages[:-1]))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "not valid JSON"),
        ('{"messages": [', "not valid JSON"),
        ("[" * 200_000, "nested"),
        ("[]", "the file: Input should be"),
        ("{}", "messages: Field required"),
        ('{"messages": 3}', "messages: Input should be a valid array"),
        ('{"messages": [{"role": "user"}]}', "messages.0.content: Field required"),
        ('{"messages": [{"role": "me", "content": ""}]}', "messages.0.role: Input should be"),
        (
            '{"messages": [{"role": "user", "content": 1}]}',
            "messages.0.content.str: Input should be",
        ),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "Invalid JSON"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "the last message has no answer"),
        ('{"messages": [{"role": "assistant", "content": "Hi"}]}', "'Hi' is from the assistant"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}',
            "a user message is text",
        ),
    ],
)
def test_a_broken_file_is_named_and_changes_nothing(
    tmp_path: Path, content: str, fault: str
) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    talk = chat(Reciting("ok"))
    say(talk, "Hello")
    with pytest.raises(MlxchatError) as caught:
        talk.load(path)
    assert str(path) in caught.value.problem
    assert fault in caught.value.problem
    assert "\n" not in caught.value.problem
    assert '"messages"' in caught.value.remedy
    assert talk.messages == dialogue("Hello", "ok")


def test_an_interrupted_load_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fill(
        tmp_path / "chat.json",
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi."},
    )
    talk = chat(Reciting("ok"), system="Be kind.")
    say(talk, "Hello")
    before = talk.messages

    with monkeypatch.context() as patch:
        patch.setattr(BYTES, "render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            talk.load(path)
    assert talk.messages == before


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "\xff"}]}')
    with pytest.raises(MlxchatError, match="not valid JSON"):
        chat(Reciting("ok")).load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match=r"none\.json: No such file"):
        chat(Reciting("ok")).load(tmp_path / "none.json")


@pytest.mark.parametrize("place", ["", "no/folder/chat.json", "."])
def test_a_failed_save_leaves_nothing(tmp_path: Path, place: str) -> None:
    with pytest.raises(MlxchatError, match="Cannot write"):
        chat(Reciting("ok")).save(tmp_path / place)
    assert list(tmp_path.iterdir()) == []
