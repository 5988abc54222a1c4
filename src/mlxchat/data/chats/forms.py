"""Reads conversations in common file formats. Pure: one decoded row in, one conversation out.

=====================================================  ============================================
``{"messages": [{"role", "content"}]}``, a bare list   nanochat and OpenAI, with their tool calls
``{"conversations": [{"from", "value"}], "system"}``   ShareGPT, with tool calls; or "conversation"
``{"instruction", "input", "output"}``                 Alpaca; of ``"instances"`` the first
``{"instruction", "context", "response"}``             Dolly
``{"question", "answer"}``                             GSM8K with its ``<<48/2=24>>``, or plain text
``{"question", "choices", "answer" | "answerKey"}``    MMLU and ARC
``{"prompt", "completion" | "response"}``              texts, or lists of messages as TRL's
``{"question" | "query", "response"}``                 OpenOrca, MetaMath
``{"inputs", "targets"}``                              FLAN, Aya
=====================================================  ============================================

A list or an object may be JSON text, a row may stand alone under the key ``train``, as those of
MMLU's auxiliary_train do, and every row may have a text named ``system`` or ``system_prompt``.
Other keys are ignored and counted. How messages become turns is in `mlxchat.data.chats.turns`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from mlxchat.data.chats.turns import (
    LEARNING_MARKS,
    conversation_of,
    read_messages,
    spoken,
    text_of,
)
from mlxchat.data.chats.values import (
    JsonRow,
    Remarks,
    UnusableError,
    checked_text,
    present,
    shortened,
    truth,
    unfolded,
)
from mlxchat.tokenizer.messages import Conversation, Message, Part, Role

FIRST_INSTANCE = "instances after the first left out"
SYSTEM = frozenset({"system", "system_prompt"})
KEYS_NAMED = 5  # of a row in an unknown format


class Usable(NamedTuple):
    """A conversation that starts with the user or the system and ends with an answer to train on.

    Attributes:
        conversation: the conversation.
        changes: phrases that say how it differs from the row.
        unused: non-empty keys of the row, its messages and their parts that were not read.
    """

    conversation: Conversation
    changes: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()


class Form(NamedTuple):
    """A row format: the keys by which it is recognised, its other keys, and its reader."""

    keys: frozenset[str]
    others: frozenset[str]
    read: Callable[[JsonRow, Remarks], Iterator[Message]]


def read_row(row: object) -> Usable:
    """Return the conversation in a row.

    What comes before the first question and after the last answer that is to be learned (a
    question, a tool call without a reply) is cut.

    Raises:
        UnusableError: the row has an unknown format or is marked as not to be learned, a question
            or an answer is empty, or there is no answer to learn.
    """
    if isinstance(row, list):
        row = {"messages": row}
    if isinstance(row, dict) and row.keys() == {"train"}:
        row = unfolded(row["train"])
    if not isinstance(row, dict):
        raise UnusableError("neither an object nor a list of messages")
    held, form = _recognised(row)
    marks = {name: truth(held[name]) for name in LEARNING_MARKS & held.keys()}
    if False in marks.values():
        raise UnusableError("marked as not to be trained on")
    remarks = Remarks()
    # A mark that is neither true nor false, such as 0.5, is something else: the share of a row.
    used_marks = {name for name, mark in marks.items() if mark is not None}
    remarks.pass_over(held, form.keys | form.others | used_marks | SYSTEM)
    instructions = [text_of(held[name], remarks) for name in sorted(SYSTEM & held.keys())]
    messages = [Message("system", text) for text in instructions]
    messages += form.read(held, remarks)
    conversation = conversation_of(messages, remarks)
    return Usable(conversation, frozenset(remarks.changes), frozenset(remarks.unused))


def _recognised(row: JsonRow) -> tuple[JsonRow, Form]:
    """Return what a row holds and its form, by the keys that are not blank if those suffice.

    In a table of several forms, each row has all columns.
    """
    held = present(row)
    filled = {key: value for key, value in held.items() if value != ""}
    for given, form in product((filled, held), _FORMS):
        if given.keys() >= form.keys:
            return given, form
    named = ", ".join(map(shortened, sorted(held)[:KEYS_NAMED]))
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


def _chat(row: JsonRow, remarks: Remarks) -> Iterator[Message]:
    key = next(key for key in ("messages", "conversations", "conversation") if key in row)
    return read_messages(row[key], remarks)


def _instructed(row: JsonRow, remarks: Remarks) -> Iterator[Message]:
    given = row
    if "instances" in row:
        instances = unfolded(row["instances"])
        if not (isinstance(instances, list) and instances and isinstance(instances[0], dict)):
            raise UnusableError("no instances")
        given = instances[0]
        remarks.pass_over(given, ("input", "context", "output", "response"))
        if len(instances) > 1:
            remarks.changes.add(FIRST_INSTANCE)
    asked = [row["instruction"], given.get("input"), given.get("context")]
    texts = [text_of(text, remarks) for text in asked if text is not None]
    yield Message("user", "\n\n".join(text for text in texts if text.strip()))
    yield Message("assistant", text_of(given.get("output", given.get("response")), remarks))


def _worked(row: JsonRow, remarks: Remarks) -> Iterator[Message]:
    yield Message("user", text_of(row["question"], remarks))
    yield spoken(solution(text_of(row["answer"], remarks)))


def _chosen(row: JsonRow, remarks: Remarks) -> Iterator[Message]:
    """Yield a multiple-choice question and its answer, in the form of MMLU or ARC.

    MMLU numbers the right choice from 0; ARC labels the choices and names the right label.
    """
    choices: Any = unfolded(row["choices"])
    labels: Any = None
    if isinstance(choices, dict):
        remarks.pass_over(choices, ("text", "label"))
        choices, labels = choices.get("text"), choices.get("label")
    if not isinstance(choices, list) or not choices:
        raise UnusableError("no choices")
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    labels = letters if labels is None else labels
    if not isinstance(labels, list) or len(labels) != len(choices):
        raise UnusableError("choices without a label each")
    answer = row.get("answerKey", row.get("answer"))
    if type(answer) is int and labels is not letters and str(answer) in labels:
        answer = str(answer)
    elif answer not in labels and (labels is letters or type(answer) is int):
        numbered = {str(number): label for number, label in enumerate(labels)}
        answer = numbered.get(str(answer))
    if answer not in labels:
        raise UnusableError("an answer that is none of the choices")
    question = multiple_choice(
        checked_text(row["question"]),
        [checked_text(label) for label in labels],
        [checked_text(text) for text in choices],
    )
    yield Message("user", question)
    yield Message("assistant", checked_text(answer))


def _pair(asked: str, answered: str) -> Form:
    """Return the form of rows with a question and its answer, each a text or a list of messages."""

    turns: tuple[tuple[str, Role], ...] = ((asked, "user"), (answered, "assistant"))

    def read(row: JsonRow, remarks: Remarks) -> Iterator[Message]:
        for key, role in turns:
            if _are_messages(row[key]):
                yield from read_messages(row[key], remarks)
            else:
                yield Message(role, text_of(row[key], remarks))

    return Form(frozenset({asked, answered}), frozenset(), read)


def _are_messages(value: object) -> bool:
    entries = unfolded(value)
    return isinstance(entries, list) and any(
        isinstance(entry, dict) and {"role", "from"} & entry.keys() for entry in entries
    )


def _form(
    keys: str, read: Callable[[JsonRow, Remarks], Iterator[Message]], others: str = ""
) -> Form:
    return Form(frozenset(keys.split()), frozenset(others.split()), read)


_FORMS = (  # the first whose keys a row has
    _form("messages", _chat),
    _form("conversations", _chat),
    _form("conversation", _chat),
    _form("instruction instances", _instructed),
    _form("instruction output", _instructed, "input context"),
    _form("instruction response", _instructed, "input context"),
    _form("question choices answerKey", _chosen),
    _form("question choices answer", _chosen),
    _form("question answer", _worked),
    _pair("prompt", "completion"),
    _pair("prompt", "response"),
    _pair("question", "response"),
    _pair("query", "response"),
    _pair("inputs", "targets"),
)

# All keys that are read.
KEYS = SYSTEM.union(LEARNING_MARKS, *(form.keys | form.others for form in _FORMS))
