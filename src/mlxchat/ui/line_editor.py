"""The line editor of the chat: several lines, pasted text, completion, and a history that is kept.

This is the only module that imports prompt_toolkit.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.output import Output

from mlxchat.disk import read_regular, replacing
from mlxchat.json_text import parse_json
from mlxchat.telemetry.events import json_line

EDITOR_KEYS = (
    ("Enter", "send the message"),
    ("Alt+Enter", "start a new line, as does Esc followed by Enter; pasted text is one message"),
    ("Up, Down", "earlier messages"),
    ("Tab", "complete a command or the name of its file"),
    ("Ctrl-C", "stop an answer, or discard what you typed; press it twice to quit"),
)
MOST_ENTRIES = 1000  # of the history that is kept
LONGEST_ENTRY = 2**16  # bytes of a line of the file
_MOST_BYTES = 2**20  # of all lines
_LARGEST_FILE = 2**26
_PRIVATE = 0o600


class LineEditor:
    """Reads messages from the terminal, of several lines where Alt+Enter is pressed or pasted.

    Args:
        commands: all commands, with what each is for.
        with_file: those whose argument is the name of a file.
        history: what was typed before, and will be.
        input: in place of the terminal, for tests.
        output: in place of the terminal, for tests.
    """

    def __init__(
        self,
        commands: Mapping[str, str],
        with_file: Iterable[str],
        history: History,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._session = PromptSession[str](
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_bindings(),
            completer=CommandCompleter(commands, frozenset(with_file)),
            complete_while_typing=Condition(_types_command),
            history=history,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
            enable_suspend=True,
            input=input,
            output=output,
        )

    def __call__(self, prompt: str) -> str:
        """Return what is typed.

        Raises:
            KeyboardInterrupt: Ctrl-C is pressed; its argument is what was typed, if anything was.
            EOFError: Ctrl-D is pressed where nothing is typed.
        """
        return self._session.prompt(prompt)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=has_focus(DEFAULT_BUFFER))
    def drop(event: KeyPressEvent) -> None:
        typed = event.current_buffer.text
        event.app.exit(exception=KeyboardInterrupt(*([typed] if typed else [])))

    return bindings


def _types_command() -> bool:
    text = get_app().current_buffer.text
    return text.startswith("/") and not any(map(str.isspace, text))


class CommandCompleter(Completer):
    """Completes commands, and the names of files after those that take one."""

    def __init__(self, commands: Mapping[str, str], with_file: frozenset[str]) -> None:
        self._commands, self._with_file = commands, with_file
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """Yield what could be in place of the word before the cursor."""
        typed = document.text_before_cursor
        command, blank, argument = typed.partition(" ")
        if blank and command in self._with_file:
            yield from self._files.get_completions(Document(argument.lstrip()), event)
        elif command.startswith("/") and not blank:
            for name, purpose in self._commands.items():
                if name.startswith(command):
                    yield Completion(name, -len(command), display_meta=purpose)


def open_history(path: Path | None) -> History:
    """Return the history that is kept in a file, which only its owner can read; or in none.

    Raises:
        OSError: the file cannot be read and written.
    """
    return InMemoryHistory() if path is None else KeptHistory(path)


class KeptHistory(History):
    """The messages typed so far, oldest first: a text in JSON on each line of a file.

    Of a long file the newest `MOST_ENTRIES` are kept. A text that is longer than `LONGEST_ENTRY`,
    such as a pasted file, is none of them. Several chats may add to it at a time.

    Raises:
        OSError: the file cannot be read and written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append(b"")
        lines = read_regular(path, _LARGEST_FILE).splitlines(keepends=True)
        kept = _newest(lines)
        content = b"".join(kept)
        if sum(map(len, lines)) > 2 * len(content):
            with replacing(path) as partial:
                partial.unlink(missing_ok=True)
                _append_privately(partial, content)
        self._entries = [entry for line in kept if (entry := _entry(line)) is not None]

    def load_history_strings(self) -> Iterator[str]:
        """Yield what was typed in earlier sessions, newest first."""
        return reversed(self._entries)

    def store_string(self, string: str) -> None:
        """Add what was typed, unless it is too long. A disk that is full by now loses it."""
        line = f"{json_line(string)}\n".encode()
        if len(line) <= LONGEST_ENTRY:
            with suppress(OSError):
                self._append(line)

    def _append(self, content: bytes) -> None:
        _append_privately(self._path, content)


def _append_privately(path: Path, content: bytes) -> None:
    """Add to a file that only its owner can read."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK  # a pipe is refused
    descriptor = os.open(path, flags, _PRIVATE)
    try:
        os.fchmod(descriptor, _PRIVATE)
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _newest(lines: list[bytes]) -> list[bytes]:
    """Return the last lines, as many as are kept, without those that are too long."""
    kept: list[bytes] = []
    room = _MOST_BYTES
    for line in reversed(lines):
        if len(line) > LONGEST_ENTRY:
            continue
        room -= len(line)
        if room < 0 or len(kept) == MOST_ENTRIES:
            break
        kept.append(line)
    return kept[::-1]


def _entry(line: bytes) -> str | None:
    """Return the text of a line; None if it is damaged."""
    with suppress(ValueError):
        entry = parse_json(line)
        return entry if isinstance(entry, str) else None
    return None
