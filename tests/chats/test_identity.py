"""A model's identity: what a user may state, and how it is taught and asked."""

import re

import pytest

from mlxchat.data.chats import asking
from mlxchat.data.chats.identity import Identity, identity_conversations, is_asked
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.messages import Conversation

ADA = Identity("Ada", "Grace", (("purpose", "help with homework"), ("favourite colour", "blue")))


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def exchanges(found: list[Conversation]) -> list[tuple[str, str]]:
    return [
        (conversation.messages[i].text, conversation.messages[i + 1].text)
        for conversation in found
        for i in range(0, len(conversation.messages), 2)
    ]


@pytest.fixture(scope="module")
def taught() -> list[tuple[str, str]]:
    return exchanges(list(identity_conversations(ADA, seed=0, count=5000)))


@pytest.mark.parametrize(
    "text, identity",
    [
        ("name=Ada", Identity("Ada")),
        (" Name = Ada , made_by=Grace", Identity("Ada", "Grace")),
        ("name=Ada,made by=Grace, Bob and Co", Identity("Ada", "Grace, Bob and Co")),
        ("made by=Grace,name=Ada B", Identity("Ada B", "Grace")),
        (
            "name=Ada, made by=Grace, purpose=help with homework, favourite  Colour=blue",
            ADA,
        ),
        ("name=Zoë {2}, born=2026", Identity("Zoë {2}", None, (("born", "2026"),))),
        ("name=Ada,,made by=Grace, ,", Identity("Ada", "Grace")),
        ("name=Ada, motto=1+1=2", Identity("Ada", None, (("motto", "1+1=2"),))),
    ],
)
def test_an_identity_is_read(text: str, identity: Identity) -> None:
    assert Identity.parse(text) == identity


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "'' in the identity is not of the form KEY=VALUE"),
        ("Ada", "'Ada' in the identity is not of the form KEY=VALUE"),
        ("name=", "'name=' in the identity is not of the form KEY=VALUE"),
        ("=Ada", "'=Ada' in the identity is not of the form KEY=VALUE"),
        ("name=,made by=Grace", "'name=' in the identity is not of the form KEY=VALUE"),
        ("name=Ada; made by=Grace", "name would be 'Ada; made by=Grace'. Separate"),
        ("name=Ada made by=Grace", "name would be 'Ada made by=Grace'"),
        ("name=Ada, made by=Grace born=2026", "made by would be 'Grace born=2026'"),
        ("made by=Grace", "does not include a name"),
        ("name=Ada, name=Bob", "gives name twice"),
        ("name=A\nda", "name is too long or has unprintable characters"),
        (f"name={'a' * 61}", "60 characters are the most"),
        (f"name=Ada, born={'a' * 301}", "300 characters are the most"),
    ],
)
def test_an_invalid_identity_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(MlxchatError, match=problem) as caught:
        Identity.parse(text)
    assert "name=Ada, made by=Grace" in caught.value.remedy


def test_a_seed_gives_the_same_conversations() -> None:
    one = list(identity_conversations(ADA, 0, 100))
    assert one == list(identity_conversations(ADA, 0, 200))[:100]
    assert one != list(identity_conversations(ADA, 1, 100))


def test_the_name_is_asked_in_many_ways(taught: list[tuple[str, str]]) -> None:
    names = {normal(text) for group in (asking.YOUR_NAME, asking.SELF) for text in group[0]}
    assert len(names) >= 60
    assert names <= {normal(question) for question, _ in taught}
    assert len({question for question, _ in taught}) > 1500


def test_held_out_questions_are_never_asked(taught: list[tuple[str, str]]) -> None:
    held_out = {normal(question) for question in asking.HELD_OUT_QUESTIONS}
    assert len(held_out) == len(asking.HELD_OUT_QUESTIONS) >= 12
    assert not any(text in normal(question) for question, _ in taught for text in held_out)


def test_every_question_for_the_name_is_answered_with_it(taught: list[tuple[str, str]]) -> None:
    for group in (
        asking.YOUR_NAME,
        asking.SELF,
        asking.KIND,
        asking.OTHER,
        asking.CALLED_BY_NAME,
        asking.SAME,
    ):
        assert all("{name}" in answer for answer in group[1])
    told = sum("Ada" in answer for _, answer in taught)
    assert told > 0.6 * len(taught)
    for words in ("Grace", "help with homework", "blue", "Ich heiße Ada.", "No, I am Ada"):
        assert any(words in answer for _, answer in taught), words
    assert not any("{" in text for exchange in taught for text in exchange)


def test_a_conversation_does_not_contradict_itself(taught: list[tuple[str, str]]) -> None:
    answers = {answer for _, answer in taught}
    assert not any("I have no name" in answer for answer in answers)
    assert not any("I am a small language model. I learned" in answer for answer in answers)


def test_some_prompts_are_carelessly_typed(taught: list[tuple[str, str]]) -> None:
    questions = {question for question, _ in taught}
    assert "what is your name" in questions
    assert any(question.startswith("Hello! ") for question in questions)
    known = {normal(question) for question in questions if is_asked(ADA, question)}
    assert len({normal(question) for question in questions} - known) > 100  # mistyped, small talk


def test_without_a_maker_no_maker_is_named() -> None:
    taught = exchanges(list(identity_conversations(Identity("Ada"), 0, 2000)))
    assert not any("made by" in answer for _, answer in taught)
    assert not any(question == "Who made you?" for question, _ in taught)


def test_another_name_gives_other_answers() -> None:
    taught = exchanges(list(identity_conversations(Identity("claude", "Ann {x}"), 0, 2000)))
    assert not any("not Claude" in answer for _, answer in taught)
    assert any("made by Ann {x}" in answer for _, answer in taught)


@pytest.mark.parametrize(
    "prompt, asked",
    [
        ("what is your name", True),
        ("Hello, who are you?", True),
        ("And your name is?", True),
        ("Who made you?", True),
        ("What is my name?", False),
        ("What does a cow say?", False),
    ],
)
def test_questions_about_identity_are_recognised(prompt: str, asked: bool) -> None:
    assert is_asked(ADA, prompt) == asked
