"""What a document is: plain text, or a conversation of messages."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn. ``content`` is text; tool calls come with fine-tuning."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages in order: an optional system message, then user and assistant in turns."""

    messages: tuple[Message, ...]


Document = str | Conversation
