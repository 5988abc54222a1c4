"""The chat for programs: an object for each line."""

import json

import pytest
from support.chats import END, Reciting, chat, ids_of

from mlxchat.ui.json_chat import answer_lines

ANSWER = {"content": "Fine.", "calculations": [], "truncated": False, "dropped": 0}


def answers(*sent: object, model: Reciting | None = None, **settings: int) -> list[dict]:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in sent]
    return list(answer_lines(chat(model or Reciting("Fine."), **settings), lines))


def test_each_message_is_answered_by_an_object() -> None:
    assert answers({"content": "Hi\nthere"}, b"\n", {"content": "Again"}) == [ANSWER, ANSWER]


def test_an_answer_tells_what_was_computed_and_cut_off() -> None:
    drawn = ids_of("It is <|python_start|>6*7<|python_end|>")
    [answer] = answers({"content": "6*7?"}, model=Reciting(drawn))
    assert answer["calculations"][0] == {"expression": "6*7", "result": "42"}
    assert answer["content"].startswith("It is ")
    assert answers({"content": "Hi"}, max_tokens=2) == [
        {**ANSWER, "content": "Fi", "truncated": True}
    ]


def test_the_content_is_what_is_said_and_no_calculation() -> None:
    forced = [END] * len(ids_of("<|output_start|>24.0<|output_end|>"))
    drawn = [*ids_of("Half: <|python_start|>48/2<|python_end|>"), *forced, *b" That."]
    assert answers({"content": "Half of 48?"}, model=Reciting(drawn)) == [
        {
            **ANSWER,
            "content": "Half:  That.",
            "calculations": [{"expression": "48/2", "result": "24.0"}],
        }
    ]


def test_commands_are_those_of_the_terminal() -> None:
    commands = ["/temperature 0.5", "/undo", "/undo", "/exit", "/clear"]
    told = answers({"content": "Hi"}, *({"command": command} for command in commands))
    assert told == [
        ANSWER,
        {"notes": ["temperature: 0.5"]},
        {"notes": ["Took back: Hi"]},
        {"error": {"problem": "There is no message yet.", "remedy": "Type a message."}},
    ]


def test_an_answer_is_given_again() -> None:
    first, again = answers({"content": "Hi"}, {"command": "/regenerate"})
    assert first == ANSWER
    assert again["content"] and again.keys() == ANSWER.keys()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"Hi", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "not an object with exactly one entry"),
        ({}, "not an object with exactly one entry"),
        ({"content": "Hi", "command": "/undo"}, "not an object with exactly one entry"),
        ({"content": 3}, "neither"),
        ({"text": "Hi"}, "neither"),
        ({"command": "undo"}, "starts with a slash"),
        ({"command": "/leave"}, "Unknown command /leave."),
        ({"command": "/top-p 2"}, "/top-p 2: input should be"),
        ({"command": "/save a\0b"}, "Cannot write a"),
        ({"command": "/save \ud800"}, "Cannot write "),
        ({"command": "/load \ud800"}, "is not valid JSON"),
        ({"command": "/load " + "x" * 999}, "Cannot read x"),
        ({"command": "/seed \ud800"}, "/seed "),
        ({"content": "x" * 600}, "the model's context is 512"),
        ({"content": ""}, "The message is empty."),
    ],
)
def test_a_mistake_is_told_and_the_chat_goes_on(line: object, problem: str) -> None:
    told, answer = answers(line, {"content": "Hi"})
    assert problem in told["error"]["problem"]
    assert told["error"]["remedy"]
    assert answer == ANSWER
