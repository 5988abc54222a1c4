"""The conversation at the terminal: reads messages, streams answers, and obeys commands.

The console takes a model's text literally: it is no rich markup and cannot control the terminal.
Its calculations are dimmed: ``[48/2 = 24.0]``.
"""

import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from rich.table import Table
from rich.text import Text

from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.messages import Brackets
from mlxchat.ui.chat_commands import (
    CommandResult,
    Piece,
    Pieces,
    Responder,
    Said,
    TwoColumns,
    message_in,
    run_slash_command,
)
from mlxchat.ui.output import LiteralConsole
from mlxchat.ui.text import amount, as_options, in_one_line
from mlxchat.ui.wrapping import WordStream

PROMPT = "> "
ESCAPE = ("//TEXT", "send a message that begins with a slash")
SHOWN_TURNS = 3  # of a conversation that was loaded

ReadMessage = Callable[[str], str]


def answer_prompt(chat: Responder, prompt: str, console: LiteralConsole) -> None:
    """Write the answer to one prompt, and a newline after it however it ends.

    Raises:
        MlxchatError: the chat cannot take the prompt.
    """
    _write(chat.reply(prompt), console)


def _write(pieces: Pieces, console: LiteralConsole) -> None:
    """Write an answer, and a newline after it however it ends."""
    words = WordStream(console)
    try:
        with closing(pieces):
            for text, dimmed in _shown(pieces):
                words.write(text, dimmed)
    finally:
        words.close()
        console.write("\n")


def _shown(pieces: Iterable[Piece]) -> Iterator[tuple[str, bool]]:
    """Yield what to write for the pieces of an answer, and whether it is dimmed, as calls are."""
    brackets = Brackets()
    for piece in pieces:
        yield from brackets.take(piece.type, piece.text)
    yield brackets.end(), True


@contextmanager
def _no_echo(console: LiteralConsole) -> Iterator[None]:
    """Keep a terminal from showing within the context what is typed; the line editor shows it then.

    Where there is no line editor, nothing changes.
    """
    if not console.is_terminal or console.is_dumb_terminal or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
        yield
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def plain_reader(console: LiteralConsole) -> ReadMessage:
    """Return a function that reads a line from standard input, where there is no line editor."""

    def read(prompt: str) -> str:
        try:
            return input(prompt)
        except (EOFError, KeyboardInterrupt):
            console.write("\n")
            raise

    return read


def converse(
    chat: Responder, name: str, console: LiteralConsole, read: ReadMessage, keys: TwoColumns = ()
) -> None:
    """Talk until /exit, Ctrl-D, or Ctrl-C twice at the prompt.

    Args:
        chat: the model's side.
        name: its name, such as "d12, step 3225".
        console: where answers and notes are written.
        read: returns what was typed after a prompt, and leaves the cursor at the beginning of a
            line; `EOFError` and `KeyboardInterrupt` are Ctrl-D and Ctrl-C. The latter's argument
            is what was typed, if anything was: then Ctrl-C only drops it.
        keys: the keys that ``read`` knows, and what they do, for /help.
    """
    _Terminal(chat, console, keys).talk(name, read)


class _Terminal:
    """A conversation at a terminal."""

    def __init__(self, chat: Responder, console: LiteralConsole, keys: TwoColumns) -> None:
        self._chat = chat
        self._console = console
        self._keys = keys
        self._told_outgrown = False  # of this conversation

    def talk(self, name: str, read: ReadMessage) -> None:
        if self._chat.conversational:
            self._note(f"You are talking with {name}.")
        else:
            self._note(
                f"{name} is a base model: it continues your text and does not answer questions. "
                "Send an empty line to let it continue."
            )
        self._note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D quits.")
        interrupted = False
        while True:
            try:
                text = read(PROMPT)
                interrupted = False
                if self._ends(text):
                    return
            except EOFError:
                return
            except KeyboardInterrupt as pressed:
                if interrupted and not pressed.args:
                    return
                interrupted = True
                self._note("Press Ctrl-C again, or Ctrl-D, to quit.")
            except UnicodeDecodeError as error:
                self._note(f"That line is not {error.encoding} text.")
            except MlxchatError as error:
                self._note(as_options(f"{error.problem} {error.remedy}".rstrip(), "/"))

    def _ends(self, text: str) -> bool:
        """Handle what the user typed: a command or a message. Returns whether the chat ends."""
        message = message_in(self._chat, text)
        if message is None:
            result = run_slash_command(self._chat, text)
            self._show(result)
            return result.ends
        if self._chat.conversational:
            message = message.rstrip()
        if message or not self._chat.conversational:
            self._answer(self._chat.reply(message))
        return False

    def _show(self, result: CommandResult) -> None:
        if result.begins:
            self._told_outgrown = False
        for note in result.notes:
            self._note(note)
        if result.rows:
            typed = (ESCAPE, *self._keys) if result.lists_commands else ()
            self._show_rows([*result.rows, *typed])
        self._show_messages(result.messages)
        if result.answer:
            self._answer(result.answer)

    def _show_rows(self, rows: TwoColumns) -> None:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for row in rows:
            table.add_row(*(Text(in_one_line(cell), "dim") for cell in row))
        self._console.print(table)

    def _show_messages(self, messages: Sequence[Said]) -> None:
        """Show the system message and the last turns of a conversation."""
        spoken = [message for message in messages if message.role != "system"]
        for message in messages[: len(messages) - len(spoken)]:
            self._note(f"system: {message.text}")
        if hidden := max(0, len(spoken) // 2 - SHOWN_TURNS):
            self._note(f"… {amount(hidden, 'earlier turns')} …")
        for message in spoken[2 * hidden :]:
            words = WordStream(self._console)
            if message.role == "user":
                words.write(PROMPT)
            for text, dimmed in _shown(message.parts):
                words.write(text, dimmed)
            words.close()
            self._console.write("\n")

    def _answer(self, pieces: Pieces) -> None:
        """Stream an answer, which Ctrl-C stops; note if it was cut off or outgrew the context."""
        try:
            with _no_echo(self._console):
                _write(pieces, self._console)
        except KeyboardInterrupt:
            self._note("Stopped.")
        else:
            if self._chat.truncated and self._chat.conversational:
                self._note("The answer was cut off at the token limit.")
        if self._chat.dropped and not self._told_outgrown:
            self._told_outgrown = True
            self._note(
                "The conversation no longer fits into the model's context, so the model does not "
                "see the oldest turns."
            )

    def _note(self, text: str) -> None:
        self._console.print(Text(in_one_line(text), "dim"))
