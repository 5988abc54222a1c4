"""Documents: plain text, or a conversation of messages.

An assistant's message may consist of parts if it calls a tool: its words, the Python expressions
it wants computed, and their output. The format is nanochat's, in memory and as JSON::

    {"role": "assistant", "content": [{"type": "python", "text": "12*3"}, ...]}
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mlxchat.errors import DataError

Role = Literal["system", "user", "assistant"]
PartType = Literal["text", "python", "python_output"]


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's message.

    Attributes:
        type: ``text`` and ``python`` are the assistant's own; ``python_output`` is the tool's.
        text: the words, the expression or its result.
        learned: whether training learns to say it; if not, it is context for what follows. The
            output of a tool never is.
    """

    type: PartType
    text: str
    learned: bool = True


@dataclass(frozen=True)
class Message:
    """One message: a text, or the parts of an assistant's message.

    Raises:
        ValueError: the message has parts and is not the assistant's.

    >>> Message("user", "What does a cow say?").text
    'What does a cow say?'
    >>> Message("assistant", (Part("python", "6*7"), Part("python_output", "42"))).parts[1].text
    '42'
    """

    role: Role
    content: str | tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role != "assistant" and not isinstance(self.content, str):
            raise ValueError(f"a {self.role} message is text; only the assistant's has parts")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts; a text is a single part."""
        return (Part("text", self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The texts of all parts, joined."""
        return "".join(part.text for part in self.parts)

    @property
    def spoken(self) -> str:
        """The text without tool calls and their output."""
        return "".join(part.text for part in self.parts if part.type == "text")


@dataclass(frozen=True)
class Conversation:
    """A conversation: an optional system message, then user and assistant in turns.

    >>> conversation = Conversation(
    ...     (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello!"))
    ... )
    >>> [message.text for message in conversation.turns()]
    ['Be brief.\\n\\nHi', 'Hello!']
    """

    messages: tuple[Message, ...]

    def turns(self) -> tuple[Message, ...]:
        """Return the user's and the assistant's messages.

        A system message is put before the first user message, after nanochat.

        Raises:
            DataError: there is no user message, or two messages in a row have the same role.
        """
        leading = int(bool(self.messages) and self.messages[0].role == "system")
        turns = self.messages[leading:]
        if not turns:
            raise DataError(
                "A conversation has no message from a user.",
                "Start it with one, or leave the conversation out.",
            )
        for number, message in enumerate(turns):
            expected = ("user", "assistant")[number % 2]
            if message.role != expected:
                raise DataError(
                    f"Message {leading + number + 1} of a conversation is the {message.role}'s, "
                    f"not the {expected}'s.",
                    "User and assistant take turns, the user first; a system message may lead.",
                )
        if leading:
            led = Message("user", f"{self.messages[0].text}\n\n{turns[0].text}")
            return (led, *turns[1:])
        return turns


Document = str | Conversation


class Brackets:
    """Writes an assistant's message as people read it: a call and its output share brackets.

    Give it the pieces of the message as they come, of which a call and its output begin with an
    empty one each, as `mlxchat.engine.answer.Answer` returns them.

    >>> brackets = Brackets()
    >>> pieces = ["text", "Half: "], ["python", ""], ["python", "48/2"], ["python_output", "24.0"]
    >>> "".join(text for piece in pieces for text, _ in brackets.take(*piece)) + brackets.end()
    'Half: [48/2 = 24.0]'
    """

    def __init__(self) -> None:
        self._latest = "text"

    def take(self, kind: str, text: str) -> Iterator[tuple[str, bool]]:
        """Yield what to write for a piece of a message, and whether it belongs to a call.

        Args:
            kind: the `PartType` of the piece.
            text: its text.
        """
        if kind != self._latest or not text:
            answers = kind == "python_output" and self._latest == "python"
            if self._latest != "text" and not answers:
                yield "]", True
            if kind != "text":
                yield (" = " if answers else "["), True
        self._latest = kind
        if text:
            yield text, kind != "text"

    def end(self) -> str:
        """Return what to write after the last piece."""
        return "" if self._latest == "text" else "]"
