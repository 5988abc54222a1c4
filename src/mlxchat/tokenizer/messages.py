"""What a document is: plain text, or a conversation of messages.

An assistant's message may consist of parts, where it calls a tool: its own words, the Python
expressions it wants computed, and what came out. These are nanochat's, in memory and as JSON::

    {"role": "assistant", "content": [{"type": "python", "text": "12*3"}, ...]}
"""

from dataclasses import dataclass
from typing import Literal

from mlxchat.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's message. Only ``python_output`` is not the assistant's own."""

    type: Literal["text", "python", "python_output"]
    text: str


@dataclass(frozen=True)
class Message:
    """One turn: text, or the parts of an assistant's message.

    Raises:
        ValueError: another than the assistant speaks in parts.
    """

    role: Role
    content: str | tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role != "assistant" and not isinstance(self.content, str):
            raise ValueError(f"a {self.role} message is text; only the assistant's has parts")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts, a text being a single one."""
        return (Part("text", self.content),) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """All that the message says, part after part."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Conversation:
    """Messages in order: an optional system message, then user and assistant in turns."""

    messages: tuple[Message, ...]

    def turns(self) -> tuple[Message, ...]:
        """User and assistant in turns; a system message goes before the first user's words.

        Raises:
            MlxchatError: there is no turn, or somebody speaks out of turn.
        """
        leading = int(bool(self.messages) and self.messages[0].role == "system")
        turns = self.messages[leading:]
        if not turns:
            raise DataError(
                "A conversation has no message from a user.", "Begin it with one, or leave it out."
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
