import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chats import ids_of
from support.models import BYTES

from mlxchat.engine.answer import Answer
from mlxchat.tokenizer.messages import Conversation, Message, Part


def decoded(text: str) -> Answer:
    answer = Answer(BYTES)
    for token in ids_of(text):
        answer.take(token)
    return answer


CALL = "<|python_start|>48/2<|python_end|><|output_start|>24.0<|output_end|>"
CALL_PARTS = (Part("python", "48/2"), Part("python_output", "24.0"))


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("", ""),
        ("Just tea.", "Just tea."),
        (f"Half is {CALL} 24.", (Part("text", "Half is "), *CALL_PARTS, Part("text", " 24."))),
        (CALL + CALL, (*CALL_PARTS, *CALL_PARTS)),
        ("<|python_start|>1/0<|python_end|>Oh", (Part("python", "1/0"), Part("text", "Oh"))),
        ("<|python_start|><|python_end|>", (Part("python", ""),)),
        ("<|output_start|>5<|output_end|>", (Part("python_output", "5"),)),
    ],
)
def test_parts_render_to_the_tokens_they_came_from(
    said: str, content: str | tuple[Part, ...]
) -> None:
    assert decoded(said).message() == (content, ids_of(said))
    conversation = Conversation((Message("user", ""), Message("assistant", content)))
    ids, _mask = BYTES.render(conversation)
    assert ids[4:-1] == ids_of(said)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("It <|python_start|>", "It <|python_start|><|python_end|>"),
        ("It <|python_start|>48/", "It <|python_start|>48/<|python_end|>"),
        (f"It {CALL[:-14]}", "It <|python_start|>48/2<|python_end|>"),
        ("It <|output_start|>", "It "),
        ("<|output_start|>4", ""),
    ],
)
def test_an_answer_cut_off_inside_a_call_is_completed(said: str, kept: str) -> None:
    answer = decoded(said)
    assert answer.message() == decoded(kept).message()
    assert answer.message()[1] == ids_of(kept)
    assert answer.tokens == ids_of(said)


def test_unmatched_ends_and_other_special_tokens_are_ignored() -> None:
    said = "a<|python_end|>b<|output_end|><|user_start|>c"
    assert decoded(said).message() == ("abc", ids_of(said))


def test_pieces_are_whole_characters_and_calls_begin_with_an_empty_one() -> None:
    answer = Answer(BYTES)
    pieces = [answer.take(token) for token in ids_of("é<|python_start|>'ü'<|python_end|>!")]
    assert [piece for piece in pieces if piece] == [
        Part("text", "é"),
        Part("python", ""),
        *(Part("python", letter) for letter in "'ü'"),
        Part("text", "!"),
    ]


def test_a_character_cut_off_at_the_end_of_a_part_is_left_out() -> None:
    answer = Answer(BYTES)
    for token in [0xC3, *ids_of("<|python_start|>1"), 0xC3, *ids_of("<|python_end|>é")]:
        answer.take(token)
    assert answer.message()[0] == (Part("python", "1"), Part("text", "é"))


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(st.integers(256, BYTES.vocab_size - 1) | st.sampled_from([*b"1+2 ", 0xC3, 0xBC])))
def test_any_tokens_make_a_message_that_renders_to_the_same_message(drawn: list[int]) -> None:
    answer = Answer(BYTES)
    pieces = [answer.take(token) for token in drawn]
    content, _tokens = answer.message()
    said = Message("assistant", content)
    assert said.text == "".join(piece.text for piece in pieces if piece)[: len(said.text)]
    ids, _mask = BYTES.render(Conversation((Message("user", ""), said)))
    again = Answer(BYTES)
    for token in ids[4:-1]:
        again.take(token)
    assert again.message() == (content, ids[4:-1])
