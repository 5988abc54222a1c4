"""Reads the messages of a row as the turns of a conversation.

Roles are those of OpenAI, ShareGPT and nanochat, in any case. An assistant's text, its tool calls,
their outputs and the text after them are parts of one message. A call of a tool other than Python
is stored as if it were Python. Consecutive turns of one role are joined by blank lines.

An assistant's message, or a part of one, that is marked as not to be trained on, such as by a
``weight`` of 0, only serves as context.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise

from mlxchat.data.chats.values import (
    JsonRow,
    Remarks,
    UnusableError,
    checked_text,
    is_empty,
    json_of,
    shortened,
    truth,
    unfolded,
)
from mlxchat.tokenizer.messages import Conversation, Message, Part, PartType, Role

CUT_AT_END = "text after the last answer dropped"
CUT_AT_START = "text before the first question dropped"
JOINED = "consecutive turns of one role merged"
SYSTEM_JOINED = "system messages merged"
NOT_LEARNED = "answers marked as not to be trained on"
ONLY_ANSWERS = "turns of other roles not trained on, although marked"

# Keys that say whether a message or a part of it is learned: OpenAI's and Mistral's, two of
# axolotl's, ms-swift's.
LEARNING_MARKS = frozenset({"weight", "train", "training", "loss"})
_MARKS_WITHIN = ("train_detail", "training_detail")  # axolotl's, of letters within a text

_ASSISTANTS = ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot")
_CALLS = ("function_call", "tool_call")
_OUTPUTS = ("tool", "function", "observation", "ipython", "tool_response", "function_response")
_SPEAKERS: dict[str, tuple[Role, PartType]] = {  # whose turn it is, and what its content is
    "system": ("system", "text"),
    "developer": ("system", "text"),
    "user": ("user", "text"),
    "human": ("user", "text"),
    "prompter": ("user", "text"),
    **dict.fromkeys(_ASSISTANTS, ("assistant", "text")),
    **dict.fromkeys(_CALLS, ("assistant", "python")),
    **dict.fromkeys(_OUTPUTS, ("assistant", "python_output")),
}


def read_messages(entries: object, remarks: Remarks) -> Iterator[Message]:
    """Yield the messages of a list of objects with role and content, or of its JSON text.

    Args:
        entries: the list.
        remarks: gets the keys that are not read.

    Raises:
        UnusableError: it is not such a list, or a message in it cannot be read.
    """
    entries = unfolded(entries)
    if isinstance(entries, str):
        raise UnusableError("messages in a text that is not a JSON list")
    if not isinstance(entries, list):
        raise UnusableError("messages that are not a list")
    return (_message(entry, remarks) for entry in entries)


def conversation_of(messages: Iterable[Message], remarks: Remarks) -> Conversation:
    """Return messages as a conversation: joined, from the first question to the last answer.

    The last answer is the last one that is to be learned.

    Args:
        messages: messages of any roles.
        remarks: gets what is joined and cut.

    Raises:
        UnusableError: there is nothing to learn, or a message is out of place, empty or incomplete.
    """
    turns = _joined(messages, remarks)
    kept = turns.copy()
    leading = int(bool(kept) and kept[0].role == "system")
    if len(kept) > leading and kept[leading].role == "assistant":
        remarks.changes.add(CUT_AT_START)
        del kept[leading]
    begun = len(kept)
    while kept and (not _is_to_learn(kept[-1]) or _fault(kept[-1])):
        kept.pop()
    if not kept:
        raise UnusableError(_nothing_to_learn(turns))
    if len(kept) < begun:
        remarks.changes.add(CUT_AT_END)
    for number, message in enumerate(kept[leading:]):
        if message.role != ("user", "assistant")[number % 2]:
            raise UnusableError("a system message in the middle of the conversation")
        if fault := _fault(message):
            raise UnusableError(fault)
    return Conversation(tuple(kept))


def spoken(parts: Iterable[Part]) -> Message:
    """Return an assistant's message, as plain text if it is nothing but text to learn."""
    parts = tuple(parts) or (Part("text", ""),)
    if parts == (Part("text", parts[0].text),):
        return Message("assistant", parts[0].text)
    return Message("assistant", parts)


def text_of(content: object, remarks: Remarks) -> str:
    """Return a text, or the texts of OpenAI's parts joined by blank lines.

    Raises:
        UnusableError: it is neither.
    """
    parts = _parts(content, remarks)
    if any(part.type != "text" for part in parts):
        raise UnusableError("a tool's part in a message that is not the assistant's")
    return "\n\n".join(part.text for part in parts)


# One message


def _message(entry: object, remarks: Remarks) -> Message:
    entry = unfolded(entry)
    if not isinstance(entry, dict):
        raise UnusableError("a message that is not an object")
    held = {key: value for key, value in entry.items() if value is not None}
    speaking = "role" if held.get("role") else "from"
    saying = "content" if "content" in held else "value"
    speaker, content = held.get(speaking), held.get(saying)
    role, kind = _speaks(speaker)
    read, parts = {speaking, saying, *LEARNING_MARKS}, tuple[Part, ...]()
    if kind != "text":
        parts = (Part(kind, _written(content, kind, remarks)),)
    elif role == "assistant":
        read |= {"tool_calls", "function_call"}
        calls = tuple(_calls(held, remarks))
        parts = calls if calls and is_empty(content) else _parts(content, remarks) + calls
    remarks.pass_over(held, read)
    is_learned = _mark(held)
    if role != "assistant" or kind == "python_output":
        if is_learned:
            remarks.changes.add(ONLY_ANSWERS)
    elif any(not is_empty(held.get(name)) for name in _MARKS_WITHIN):
        raise UnusableError("marks within the text of an answer")
    elif is_learned is False:
        parts = tuple(replace(part, learned=False) for part in parts)
    if not all(part.learned for part in parts):
        remarks.changes.add(NOT_LEARNED)
    return spoken(parts) if role == "assistant" else Message(role, text_of(content, remarks))


def _speaks(speaker: object) -> tuple[Role, PartType]:
    """Return the role that a name stands for, and what its messages hold."""
    name = speaker.strip().casefold().replace("-", "_") if isinstance(speaker, str) else ""
    if name not in _SPEAKERS:
        raise UnusableError(f"an unknown role: {shortened(speaker)}")
    return _SPEAKERS[name]


def _mark(held: JsonRow) -> bool | None:
    """Return whether a message or a part is marked as to be learned or not; None if it is not."""
    marks = []
    for name in sorted(LEARNING_MARKS & held.keys()):
        if is_empty(held[name]):
            continue
        mark = truth(held[name])
        if mark is None:
            raise UnusableError(f"a {name} that is neither 0 nor 1")
        marks.append(mark)
    return all(marks) if marks else None


def _calls(held: JsonRow, remarks: Remarks) -> Iterator[Part]:
    """Yield OpenAI's tool calls, and the one of its earlier format: the function as JSON."""
    calls = unfolded(held.get("tool_calls")) or []
    earlier = unfolded(held.get("function_call")) or {}
    if not isinstance(calls, list) or not isinstance(earlier, dict):
        raise UnusableError("tool calls that are not a list of objects")
    if any(value is not None for value in earlier.values()):
        calls = [*calls, {"function": earlier}]
    for call in map(unfolded, calls):
        if not isinstance(call, dict):
            raise UnusableError("tool calls that are not a list of objects")
        function, learned = call.get("function"), True
        if isinstance(function, dict):
            remarks.pass_over(call, {"function", *LEARNING_MARKS})
            learned = _mark(call) is not False
        yield Part("python", json_of(function if isinstance(function, dict) else call), learned)


def _written(content: object, kind: PartType, remarks: Remarks) -> str:
    """Return what a tool is called with, or its output, which may be null or any JSON."""
    if content is None and kind == "python_output":
        return ""
    pieces = content if isinstance(content, list) else [content]
    if content is None or all(isinstance(piece, str) or _is_text(piece) for piece in pieces):
        return text_of(content, remarks)
    return json_of(content)


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text"


def _parts(content: object, remarks: Remarks) -> tuple[Part, ...]:
    if not isinstance(content, list):
        return (Part("text", checked_text(content)),)
    parts = []
    for entry in content:
        if isinstance(entry, str):
            entry = {"type": "text", "text": entry}
        if not isinstance(entry, dict):
            raise UnusableError("a part that is not an object")
        kind, text = entry.get("type"), entry.get("text")
        if kind not in ("text", "python", "python_output"):
            raise UnusableError(f"a part of an unknown type: {shortened(kind)}")
        if not isinstance(text, str):
            raise UnusableError("a part without text")
        remarks.pass_over(entry, ("type", "text", *LEARNING_MARKS))
        parts.append(Part(kind, checked_text(text), _mark(entry) is not False))
    return tuple(parts)


# All messages


def _joined(messages: Iterable[Message], remarks: Remarks) -> list[Message]:
    """Return messages whose roles alternate, and without a system message that says nothing."""
    said = (m for m in messages if m.role != "system" or m.text.strip())
    turns = []
    for role, run in groupby(said, key=lambda message: message.role):
        if role == "assistant":
            turns.append(_answer(list(run), remarks))
            continue
        texts = [message.text for message in run if message.text.strip()]
        if role == "system":
            texts = list(dict.fromkeys(texts))
        if len(texts) > 1:
            remarks.changes.add(SYSTEM_JOINED if role == "system" else JOINED)
        turns.append(Message(role, "\n\n".join(texts)))
    return turns


def _answer(run: list[Message], remarks: Remarks) -> Message:
    """Join messages of the assistant: what it says, its calls, their outputs, what it says then."""
    if len(run) == 1:
        return run[0]
    parts: list[Part] = []
    for message in [m for m in run if not _says_nothing(m)] or run[:1]:
        first, *others = message.parts
        if parts and first.type == "text":
            last = parts[-1]
            if last.type == "python":
                raise UnusableError("a tool call with nothing after it")
            if last.type == "text":
                remarks.changes.add(JOINED)
                before = parts.pop().text if last.learned == first.learned else ""
                first = replace(first, text=f"{before}\n\n{first.text}")
        parts += [first, *others]
    return spoken(parts)


def _says_nothing(message: Message) -> bool:
    return all(part.type == "text" and not part.text.strip() for part in message.parts)


def _is_to_learn(message: Message) -> bool:
    """Return whether a message is the assistant's, and any of its own words are to be learned."""
    return message.role == "assistant" and any(
        part.learned for part in message.parts if part.type != "python_output"
    )


def _nothing_to_learn(turns: list[Message]) -> str:
    """Return why no answer of a conversation can be learned."""
    if not turns:
        return "no messages"
    if fault := next(filter(None, map(_fault, turns)), None):
        return fault
    roles = {message.role for message in turns}
    if "assistant" in roles and not any(map(_is_to_learn, turns)):
        return "every answer is marked as not to be trained on"
    return "no answer" if "user" in roles else "no question"


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
    return None if last.type == "text" else "a tool call with nothing after it"
