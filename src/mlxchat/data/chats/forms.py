"""Reads conversations in common file formats. Pure: one decoded row in, one conversation out.

=====================================================  ============================================
``{"messages": [{"role", "content"}]}``, a bare list   nanochat and OpenAI, with their tool calls
``{"conversations": [{"from", "value"}], "system"}``   ShareGPT, with tool calls
``{"instruction", "input", "output"}``                 Alpaca; of ``"instances"`` the first
``{"instruction", "context", "response"}``             Dolly
``{"question", "answer"}``                             GSM8K with its ``<<48/2=24>>``, or plain text
``{"question", "choices", "answer" | "answerKey"}``    MMLU and ARC
``{"prompt", "completion" | "response"}``
=====================================================  ============================================

Other keys are ignored. User and assistant must take turns, the user first, after at most one system
message. An assistant's text, its tool calls, their outputs and the text after them are parts of one
message. A call of a tool other than Python is stored as if it were Python.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from mlxchat.tokenizer.messages import Conversation, Message, Part, Role

UNANSWERED = "everything after the last answer"
KEYS_NAMED = 5  # of a row in an unknown format
NAME_CHARACTERS = 30  # of a key, a role or a type in a reason

JsonRow = Mapping[str, Any]

_SPEAKERS: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_CALLS = ("function_call",)
_OUTPUTS = ("observation", "tool", "function")


class UnusableError(Exception):
    """A row cannot be trained on. ``reason`` is a short phrase, the same for similar rows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Usable(NamedTuple):
    """A conversation that begins with the user or the system and ends with an answer.

    ``cut`` names the part of the row that was left out; None if the row is complete.
    """

    conversation: Conversation
    cut: str | None = None


def read_row(row: object) -> Usable:
    """Return the conversation in a row.

    Everything after the last answer (a question, a tool call without a reply) is cut.

    Raises:
        UnusableError: the row has an unknown format, the roles do not alternate, or a question or
            an answer is empty.
    """
    if isinstance(row, list):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise UnusableError("neither an object nor a list of messages")
    held = {key: value for key, value in row.items() if value is not None}
    for keys, form in _FORMS:
        if held.keys() >= keys:
            return _in_turn(list(form(held)))
    named = ", ".join(key[:NAME_CHARACTERS] for key in sorted(held)[:KEYS_NAMED])
    raise UnusableError(f"unknown format: {f'keys {named}' if named else 'no keys'}")


def multiple_choice(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """Return a multiple-choice question in the form of nanochat's `render_mc` (tasks/common.py)."""
    listed = "".join(
        f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True)
    )
    return (
        f"Multiple Choice question: {question}\n{listed}\n"
        "Respond only with the letter of the correct answer."
    )


def solution(text: str) -> Iterator[Part]:
    """Yield the parts of a GSM8K solution: ``<<48/2=24>>`` is an expression and its result."""
    for number, piece in enumerate(re.split(r"<<([^>]+)>>", text)):
        if number % 2:
            expression, _, result = piece.rpartition("=") if "=" in piece else (piece, "", "")
            yield Part("python", expression)
            yield Part("python_output", result)
        elif piece:
            yield Part("text", piece)


def _chat(row: JsonRow) -> Iterator[Message]:
    entries = row.get("messages", row.get("conversations"))
    if not isinstance(entries, list):
        raise UnusableError("messages that are not a list")
    if "system" in row:
        yield Message("system", _text(row["system"]))
    answer: tuple[Part, ...] = ()
    for message in map(_message, entries):
        if answer and (message.role != "assistant" or not _goes_on(answer, message.parts)):
            yield _spoken(answer)
            answer = ()
        if message.role == "assistant":
            answer += message.parts
        else:
            yield message
    if answer:
        yield _spoken(answer)


def _goes_on(answer: Sequence[Part], parts: Sequence[Part]) -> bool:
    """Return whether parts continue the last answer: a call, its output, or the text after it."""
    return parts[0].type != "text" or answer[-1].type == "python_output"


def _spoken(parts: tuple[Part, ...]) -> Message:
    """Return an assistant's message, as plain text if it has no other parts."""
    if len(parts) == 1 and parts[0].type == "text":
        return Message("assistant", parts[0].text)
    return Message("assistant", parts)


def _message(entry: object) -> Message:
    if not isinstance(entry, dict):
        raise UnusableError("a message that is not an object")
    speaker = entry.get("role") or entry.get("from")
    content = entry.get("content") if entry.get("content") is not None else entry.get("value")
    if speaker in _CALLS:
        return Message("assistant", (Part("python", _text(content)),))
    if speaker in _OUTPUTS:
        return Message("assistant", (Part("python_output", _text(content)),))
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise UnusableError(f"an unknown role: {str(speaker)[:NAME_CHARACTERS]}")
    calls = _calls(entry)
    if role != "assistant":
        return Message(role, _text(content))
    said = () if calls and not content else _parts(content)
    return Message("assistant", (said + calls) or (Part("text", ""),))


def _calls(entry: JsonRow) -> tuple[Part, ...]:
    """Return OpenAI's tool calls: objects with the function's name and its arguments."""
    calls = entry.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UnusableError("tool calls that are not a list of objects")
    return tuple(
        Part("python", _text(json.dumps(call.get("function", call), ensure_ascii=False)))
        for call in calls
    )


def _text(content: object) -> str:
    """Return a text, or the texts of OpenAI's parts joined by blank lines."""
    if isinstance(content, list):
        parts = _parts(content)
        if any(part.type != "text" for part in parts):
            raise UnusableError("a tool's part in a message that is not the assistant's")
        return "\n\n".join(part.text for part in parts)
    if not isinstance(content, str):
        raise UnusableError("a message without text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UnusableError("half a surrogate pair") from error
    return content


def _parts(content: object) -> tuple[Part, ...]:
    if not isinstance(content, list):
        return (Part("text", _text(content)),)
    parts = []
    for entry in content:
        if not isinstance(entry, dict):
            raise UnusableError("a part that is not an object")
        kind, text = entry.get("type"), entry.get("text")
        if kind not in ("text", "python", "python_output"):
            raise UnusableError(f"a part of an unknown type: {str(kind)[:NAME_CHARACTERS]}")
        if not isinstance(text, str):
            raise UnusableError("a part without text")
        parts.append(Part(kind, _text(text)))
    return tuple(parts)


def _instructed(row: JsonRow) -> Iterator[Message]:
    given = row
    if "instances" in row:
        instances = row["instances"]
        if not (isinstance(instances, list) and instances and isinstance(instances[0], dict)):
            raise UnusableError("no instances")
        given = instances[0]
    context = _text(given.get("input") or given.get("context") or "")
    question = _text(row["instruction"])
    yield Message("user", f"{question}\n\n{context}" if context.strip() else question)
    yield Message("assistant", _text(given.get("output", given.get("response"))))


def _worked(row: JsonRow) -> Iterator[Message]:
    yield Message("user", _text(row["question"]))
    yield _spoken(tuple(solution(_text(row["answer"]))) or (Part("text", ""),))


def _chosen(row: JsonRow) -> Iterator[Message]:
    """Yield a multiple-choice question and its answer, in the form of MMLU or ARC.

    MMLU numbers the right choice from 0; ARC labels the choices and names the right label.
    """
    given = row["choices"]
    choices, labels = given, None
    if isinstance(given, dict):
        choices, labels = given.get("text"), given.get("label")
    if not isinstance(choices, list) or not choices:
        raise UnusableError("no choices")
    if labels is None:
        labels = [chr(ord("A") + number) for number in range(len(choices))]
    if not isinstance(labels, list) or len(labels) != len(choices):
        raise UnusableError("choices without a label each")
    answer = row.get("answerKey", row.get("answer"))
    if type(answer) is int and 0 <= answer < len(labels):
        answer = labels[answer]
    if answer not in labels:
        raise UnusableError("an answer that is none of the choices")
    question = multiple_choice(
        _text(row["question"]),
        [_text(label) for label in labels],
        [_text(text) for text in choices],
    )
    yield Message("user", question)
    yield Message("assistant", _text(answer))


def _completed(row: JsonRow) -> Iterator[Message]:
    yield Message("user", _text(row["prompt"]))
    yield Message("assistant", _text(row.get("completion", row.get("response"))))


_FORMS: tuple[tuple[set[str], Callable[[JsonRow], Iterator[Message]]], ...] = (
    ({"messages"}, _chat),
    ({"conversations"}, _chat),
    ({"instruction", "instances"}, _instructed),
    ({"instruction", "output"}, _instructed),
    ({"instruction", "response"}, _instructed),
    ({"question", "choices", "answerKey"}, _chosen),
    ({"question", "choices", "answer"}, _chosen),
    ({"question", "answer"}, _worked),
    ({"prompt", "completion"}, _completed),
    ({"prompt", "response"}, _completed),
)

# All keys that are read.
KEYS = frozenset({"system", "input", "context"}.union(*(keys for keys, _ in _FORMS)))


def _in_turn(messages: list[Message]) -> Usable:
    """Check the messages, and return those up to the last answer."""
    if messages and messages[0].role == "system" and not messages[0].text.strip():
        del messages[0]
    kept = messages.copy()
    while kept and (kept[-1].role != "assistant" or _fault(kept[-1])):
        kept.pop()
    if not kept:
        faults = filter(None, map(_fault, messages))
        raise UnusableError(next(faults, "no answer" if messages else "no messages"))
    leading = int(kept[0].role == "system")
    for number, message in enumerate(kept[leading:]):
        if message.role != ("user", "assistant")[number % 2]:
            raise UnusableError("somebody speaks out of turn")
        if fault := _fault(message):
            raise UnusableError(fault)
    return Usable(Conversation(tuple(kept)), UNANSWERED if len(kept) < len(messages) else None)


def _fault(message: Message) -> str | None:
    """Return why a message cannot be trained on; None if it can."""
    if message.role != "assistant":
        return None if message.text.strip() else "an empty question"
    if not message.text.strip():
        return "an empty answer"
    first, last = message.parts[0], message.parts[-1]
    following = [b for a, b in pairwise(message.parts) if a.type == "text"]
    if any(part.type == "python_output" for part in (first, *following)):
        return "a tool's output without its call"
    return None if last.type == "text" else "a tool call that nothing follows"
