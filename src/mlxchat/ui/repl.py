"""The conversation at the terminal: reads lines, streams answers, and obeys /commands.

The console takes a model's text literally: it is no rich markup and cannot control the terminal.
Its calculations are dimmed: ``[48/2 = 24.0]``.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

from rich.text import Text

from mlxchat.errors import MlxchatError
from mlxchat.home import expanded
from mlxchat.tokenizer.messages import Brackets
from mlxchat.ui.output import LiteralConsole
from mlxchat.ui.text import as_options, in_one_line

SLASH_COMMANDS = {
    "/clear": ("", "start a new conversation"),
    "/save": ("FILE", "write the conversation to a file"),
    "/load": ("FILE", "resume the conversation in a file"),
    "/help": ("", "show this list"),
    "/quit": ("", "quit, as Ctrl-D does"),
}


class Piece(Protocol):
    """A piece of an answer, such as `mlxchat.tokenizer.messages.Part`."""

    @property
    def type(self) -> str:
        """``text``, the ``python`` of a tool call, or its ``python_output``."""

    @property
    def text(self) -> str:
        """The text of the piece; empty where a call or its output begins."""


class Responder(Protocol):
    """The other side of a conversation, such as `mlxchat.engine.chat.Chat`."""

    conversational: bool
    dropped: int
    truncated: bool

    def reply(self, text: str) -> Generator[Piece, None, None]:
        """Return the pieces of the answer to a message."""

    def clear(self) -> None:
        """Forget the conversation."""

    def save(self, path: Path) -> None:
        """Write the conversation to a file."""

    def load(self, path: Path) -> None:
        """Read the conversation from a file."""


def answer_prompt(chat: Responder, prompt: str, console: LiteralConsole) -> None:
    """Write the answer to one prompt, and a newline after it however it ends.

    Raises:
        MlxchatError: the chat cannot take the prompt.
    """
    pieces = chat.reply(prompt)
    try:
        with closing(pieces):
            for text, dimmed in _shown(pieces):
                if dimmed:
                    _dim(console, text)
                else:
                    console.write(text)
    finally:
        console.write("\n")


def _shown(pieces: Iterable[Piece]) -> Iterator[tuple[str, bool]]:
    """Yield what to write for the pieces of an answer, and whether it is dimmed, as calls are."""
    brackets = Brackets()
    for piece in pieces:
        yield from brackets.take(piece.type, piece.text)
    yield brackets.end(), True


def converse(
    chat: Responder, name: str, console: LiteralConsole, read: Callable[[str], str] = input
) -> None:
    """Talk until /quit, Ctrl-D, or Ctrl-C twice at the prompt.

    Args:
        chat: the model's side.
        name: its name, such as "d12, step 3225".
        console: where answers and notes are written.
        read: returns a line for a prompt, as `input` does; `EOFError` and `KeyboardInterrupt` are
            Ctrl-D and Ctrl-C.
    """
    with suppress(ImportError):  # imported here because that can write to standard output
        import readline  # noqa: F401  (gives input() line editing and history)
    if chat.conversational:
        _note(console, f"You are talking with {name}.")
    else:
        _note(
            console,
            f"{name} is a base model: it continues your text and does not answer questions. "
            "An empty line lets it continue.",
        )
    _note(console, "/help lists the commands; Ctrl-C stops an answer, Ctrl-D quits.")
    interrupted = False
    while True:
        try:
            line = read("> ")
            interrupted = False
            if line.strip() == "/quit":
                return
            _obey(chat, line, console)
        except EOFError:
            console.write("\n")
            return
        except KeyboardInterrupt:
            console.write("\n")
            if interrupted:
                return
            interrupted = True
            _note(console, "Ctrl-C again, or Ctrl-D, quits.")
        except UnicodeDecodeError as error:
            _note(console, f"That line is not {error.encoding} text.")
        except MlxchatError as error:
            _note(console, as_options(f"{error.problem} {error.remedy}"))


def _obey(chat: Responder, line: str, console: LiteralConsole) -> None:
    """Handle a line from the user: a command or a message."""
    command, *arguments = line.split(maxsplit=1) or [""]
    if not command.startswith("/"):
        if command or not chat.conversational:
            _take_turn(chat, line, console)
        return
    if command not in SLASH_COMMANDS:
        _note(console, f"Unknown command {command}; /help lists the commands.")
        return
    expected, _ = SLASH_COMMANDS[command]
    path = expanded(arguments[0].strip()) if expected and arguments else Path()
    if bool(expected) != bool(arguments):
        _note(console, f"Usage: {command} {expected}")
    elif command == "/clear":
        chat.clear()
        _note(console, "Started a new conversation.")
    elif command == "/save":
        chat.save(path)
        _note(console, f"Saved to {path}.")
    elif command == "/load":
        chat.load(path)
        _note(console, f"Resumed {path}.")
    elif command == "/help":
        purposes = {
            f"{name} {argument}": purpose for name, (argument, purpose) in SLASH_COMMANDS.items()
        }
        width = max(map(len, purposes))
        for usage, purpose in purposes.items():
            _note(console, f"{usage:<{width}}  {purpose}")


def _take_turn(chat: Responder, text: str, console: LiteralConsole) -> None:
    """Give one answer, which Ctrl-C stops, and a note if it was cut off or lost its context."""
    dropped = chat.dropped
    try:
        answer_prompt(chat, text, console)
    except KeyboardInterrupt:
        _note(console, "Stopped.")
        return
    if chat.truncated and chat.conversational:
        _note(console, "The answer was cut off at the token limit.")
    if chat.dropped > dropped:
        turns = "turn" if chat.dropped == 1 else f"{chat.dropped} turns"
        _note(
            console,
            f"The conversation has outgrown the model's context: it no longer sees the first "
            f"{turns}.",
        )


def _note(console: LiteralConsole, text: str) -> None:
    console.print(Text(in_one_line(text), "dim"))


def _dim(console: LiteralConsole, text: str) -> None:
    console.print(Text(text, "dim"), end="", soft_wrap=True)
