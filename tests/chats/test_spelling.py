"""Spelling and counting: every step of every conversation is right, and some pairs never occur."""

import re

import pytest

from mlxchat.data.chats import spelling
from mlxchat.data.chats.spelling import WORDS
from mlxchat.tokenizer.messages import Conversation

COUNT = re.compile(r"'(\w+)'\.count\('(\w)'\)")


def parts(conversation: Conversation) -> tuple[str, ...]:
    return tuple(part.type for part in conversation.messages[1].parts)


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return list(spelling.spelling_conversations(seed=0, count=4000))


def counted(conversation: Conversation) -> tuple[str, str]:
    match = COUNT.fullmatch(conversation.messages[1].parts[1].text)
    assert match
    word, letter = match.groups()
    return word, letter


def test_there_are_many_words_of_plain_letters() -> None:
    assert len(WORDS) == len(set(WORDS)) > 500
    assert all(re.fullmatch("[a-z]{4,}", word) for word in WORDS)


def test_a_seed_gives_the_same_conversations(conversations: list[Conversation]) -> None:
    assert list(spelling.spelling_conversations(0, 50)) == conversations[:50]
    assert list(spelling.spelling_conversations(1, 50)) != conversations[:50]
    assert spelling.held_out_conversations(20) == spelling.held_out_conversations(40)[:20]
    assert spelling.held_out_conversations(20) != spelling.held_out_conversations(20, seed=1)


def test_three_in_four_conversations_count_letters(conversations: list[Conversation]) -> None:
    kinds = [parts(conversation) for conversation in conversations]
    counting = ("text", "python", "python_output", "text")
    assert set(kinds) == {counting, ("text",)}
    assert 0.7 < kinds.count(counting) / len(kinds) < 0.8


def test_every_step_of_counting_is_right(conversations: list[Conversation]) -> None:
    for conversation in conversations:
        question, reply = conversation.messages
        first = reply.parts[0].text
        spelled = re.match(r"(\w+):((?:\w,)*\w)$", first, re.MULTILINE)
        assert spelled
        word = spelled.group(1)
        assert spelled.group(2).split(",") == list(word)
        assert word in question.text
        if len(reply.parts) == 1:
            continue
        assert counted(conversation)[0] == word
        letter, total = counted(conversation)[1], 0
        assert re.search(rf"\b{letter}(s|\b)", question.text)
        steps = re.findall(r"^(\d+):(\w)=(\d+)$", first, re.MULTILINE)
        assert len(steps) == len(word)
        for number, (place, found, so_far) in enumerate(steps):
            total += word[number] == letter
            assert (place, found, so_far) == (str(number + 1), word[number], str(total))
        assert first.split("\n\n")[-1].startswith(f"So {total}.")
        assert reply.parts[2].text == str(total) == spelling.final_answer(conversation)


def test_the_wording_of_questions_varies(conversations: list[Conversation]) -> None:
    questions = {conversation.messages[0].text for conversation in conversations}
    assert len(questions) > 0.9 * len(conversations)
    shapes = {re.sub(r"\W?\b(\w|" + "|".join(WORDS) + r")\b\W?", "_", text) for text in questions}
    assert len(shapes) > 60
    totals = {spelling.final_answer(c) for c in conversations if len(parts(c)) > 1}
    assert totals >= {"0", "1", "2", "3", "4"}


def test_held_out_pairs_are_never_trained_on(conversations: list[Conversation]) -> None:
    kept = spelling.held_out_conversations(500)
    pairs = {counted(conversation) for conversation in kept}
    trained = {counted(c) for c in conversations if len(parts(c)) > 1}
    assert len(kept) == 500
    assert len({conversation.messages[0].text for conversation in kept}) > 450
    assert len(pairs) > 200
    assert not pairs & trained
    assert all(spelling.is_pair_held_out(*pair) for pair in pairs)
    assert not any(spelling.is_pair_held_out(*pair) for pair in trained)
