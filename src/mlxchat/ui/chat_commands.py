"""The commands of a chat, such as ``/undo`` and ``/temperature 0.8``, in a terminal and as JSON.

Every setting of the chat is a command as well, with the name that its option has.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from mlxchat.errors import ConfigError
from mlxchat.home import expanded
from mlxchat.ui.text import amount

NONE = "none"  # stands for no value: no system message, no limit to top-k
TYPICAL = "temperature"  # the setting that shows how all are changed

SLASHED = "To send a message that starts with a slash, type two slashes."

TwoColumns = Sequence[tuple[str, str]]  # of a table: what, and what about it


class Piece(Protocol):
    """A piece of an answer, such as `mlxchat.tokenizer.messages.Part`."""

    @property
    def type(self) -> str:
        """``text``, the ``python`` of a tool call, or its ``python_output``."""

    @property
    def text(self) -> str:
        """The text of the piece; empty where a call or its output begins."""


class Said(Protocol):
    """A message, such as `mlxchat.tokenizer.messages.Message`."""

    @property
    def role(self) -> str:
        """``system``, ``user`` or ``assistant``."""

    @property
    def text(self) -> str:
        """The texts of all pieces, joined."""

    @property
    def spoken(self) -> str:
        """The text without tool calls and their output."""

    @property
    def parts(self) -> Sequence[Piece]:
        """The pieces that it consists of."""


Pieces = Generator[Piece, None, None]


class Responder(Protocol):
    """The other side of a conversation, such as `mlxchat.engine.chat.Chat`."""

    conversational: bool
    truncated: bool

    @property
    def settings(self) -> Iterable[tuple[str, Any]]:
        """Each setting's name and value."""

    @property
    def messages(self) -> Sequence[Said]:
        """All messages of the conversation."""

    @property
    def dropped(self) -> int:
        """The number of turns that the model no longer sees."""

    def reply(self, text: str) -> Pieces:
        """Return the pieces of the answer to a message."""

    def regenerate(self) -> Pieces:
        """Return the pieces of another answer to the latest message."""

    def undo(self) -> str:
        """Take back the latest message; returns it."""

    def set(self, **settings: Any) -> None:
        """Change settings."""

    def clear(self) -> None:
        """Forget the conversation."""

    def save(self, path: Path) -> None:
        """Write the conversation to a file."""

    def load(self, path: Path) -> None:
        """Read the conversation from a file."""


@dataclass(frozen=True)
class CommandResult:
    """The result of a command.

    Attributes:
        notes: what to say about it.
        rows: a table to show.
        lists_commands: whether that is the table of commands.
        messages: a conversation to show.
        answer: an answer to stream.
        begins: whether another conversation begins.
        ends: whether the chat ends.
    """

    notes: tuple[str, ...] = ()
    rows: TwoColumns = ()
    lists_commands: bool = False
    messages: Sequence[Said] = ()
    answer: Pieces | None = None
    begins: bool = False
    ends: bool = False


@dataclass(frozen=True)
class SlashCommand:
    """A command: what it does with a chat and its argument, which ``argument`` names if it has one.

    A command that has an argument needs it.
    """

    run: Callable[[Responder, str], CommandResult]
    purpose: str
    argument: str = ""


def _regenerate(chat: Responder, _: str) -> CommandResult:
    answer = chat.regenerate()
    same = ("At temperature 0, the answer only changes if you change other settings.",)
    return CommandResult(() if dict(chat.settings)[TYPICAL] else same, answer=answer)


def _undo(chat: Responder, _: str) -> CommandResult:
    return CommandResult((f"Took back: {chat.undo()}",))


def _clear(chat: Responder, _: str) -> CommandResult:
    chat.clear()
    return CommandResult(("Started a new conversation.",), begins=True)


def _save(chat: Responder, file: str) -> CommandResult:
    chat.save(path := expanded(file))
    return CommandResult((f"Saved to {path}.",))


def _load(chat: Responder, file: str) -> CommandResult:
    chat.load(path := expanded(file))
    count = sum(message.role == "user" for message in chat.messages)
    resumed = f"Resumed {path}: {amount(count, 'turns')}."
    return CommandResult((resumed,), messages=chat.messages, begins=True)


def _settings(chat: Responder, _: str) -> CommandResult:
    return CommandResult(
        rows=[(_named(setting), _shown(value)) for setting, value in chat.settings]
    )


def _help(chat: Responder, _: str) -> CommandResult:
    listed = [
        (f"{name} {each.argument}".strip(), each.purpose) for name, each in SLASH_COMMANDS.items()
    ]
    alike = [f"/{_named(each)}" for each, _ in chat.settings if each not in ("system", TYPICAL)]
    return CommandResult(
        rows=[
            ("/system TEXT", f"instructions for the whole conversation; {NONE} removes them"),
            *listed,
            (f"/{TYPICAL} 0.8", f"change a setting; also {', '.join(alike)}"),
        ],
        lists_commands=True,
    )


def _exit(chat: Responder, _: str) -> CommandResult:
    return CommandResult(ends=True)


SLASH_COMMANDS = {
    "/regenerate": SlashCommand(_regenerate, "generate another answer to the last message"),
    "/undo": SlashCommand(_undo, "take back the last message and its answer"),
    "/clear": SlashCommand(_clear, "start a new conversation"),
    "/save": SlashCommand(_save, "write the conversation to a file", "FILE"),
    "/load": SlashCommand(_load, "resume the conversation in a file", "FILE"),
    "/help": SlashCommand(_help, "show this list"),
    "/exit": SlashCommand(_exit, "quit, as Ctrl-D does"),
    "/quit": SlashCommand(_exit, "quit as well"),
    "/settings": SlashCommand(_settings, "show all settings"),
}


def purposes(chat: Responder) -> dict[str, str]:
    """Return all commands, those of the settings too, with what each is for."""
    named = {name: command.purpose for name, command in SLASH_COMMANDS.items()}
    return named | {f"/{_named(each)}": "show or change this setting" for each, _ in chat.settings}


def message_in(chat: Responder, text: str) -> str | None:
    """Return the message that a text typed at the prompt is; None if it is a command.

    It is a command if its first word is one, or if it is a single line that begins with a slash.
    Several lines that begin so, such as pasted code, are a message. Where a second slash precedes
    what would be a command, that is a message too, without the second slash.
    """
    typed = text.lstrip()
    if typed.startswith("//") and typed[2:].strip() and _is_command(chat, typed[1:]):
        return text.replace("/", "", 1)
    return None if _is_command(chat, text) else text


def _is_command(chat: Responder, text: str) -> bool:
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return word.startswith("/") and (word in purposes(chat) or "\n" not in text.strip())


def run_slash_command(chat: Responder, text: str) -> CommandResult:
    """Carry out a command.

    Raises:
        MlxchatError: there is no such command, or it fails. The chat can go on.
    """
    name, *rest = text.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    settings = {f"/{_named(each)}": each for each, _ in chat.settings}
    if name in settings:
        return _set(chat, settings[name], argument)
    if name not in SLASH_COMMANDS:
        near = get_close_matches(name, purposes(chat), 1)
        hint = f"Did you mean {near[0]}?" if near else "/help lists the commands."
        raise ConfigError(f"Unknown command {name}.", f"{hint} {SLASHED}")
    command = SLASH_COMMANDS[name]
    if bool(command.argument) != bool(argument):
        raise ConfigError(f"Usage: {name} {command.argument}".strip())
    return command.run(chat, argument)


def _set(chat: Responder, setting: str, argument: str) -> CommandResult:
    """Change a setting, or show it if no value is given."""
    if argument:
        chat.set(**{setting: None if argument == NONE else argument})
    return CommandResult(rows=[(_named(setting), _shown(dict(chat.settings)[setting]))])


def _named(setting: str) -> str:
    """Return the name of a setting on the command line."""
    return setting.replace("_", "-")


def _shown(value: object) -> str:
    return NONE if value is None else str(value)
