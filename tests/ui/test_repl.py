import io
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from mlxchat.config.inference import ChatSettings
from mlxchat.config.validate import validated
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.messages import Message, Part
from mlxchat.ui.chat_commands import SLASH_COMMANDS
from mlxchat.ui.output import LiteralConsole, console_for
from mlxchat.ui.repl import answer_prompt, converse


class Parrot:
    """Repeats what it is told, a word at a time; ``after`` that many words Ctrl-C is pressed."""

    def __init__(self, conversational: bool = True, after: int | None = None) -> None:
        self.conversational = conversational
        self.dropped = 0
        self.truncated = False
        self.settings = ChatSettings()
        self.messages: tuple[Message, ...] = ()
        self.after = after
        self.calls: list[tuple[str, ...]] = []
        self.closed = False

    def reply(self, text: str) -> Generator[Part, None, None]:
        if text == "too long":
            raise MlxchatError("The message is too long.", "Shorten it.")
        self.calls.append(("reply", text))
        return self._words(text)

    def _words(self, text: str) -> Iterator[Part]:
        try:
            for i, word in enumerate(text.split(" ")):
                if i == self.after:
                    raise KeyboardInterrupt
                yield Part("text", word + " ")
        finally:
            self.closed = True

    def regenerate(self) -> Generator[Part, None, None]:
        self.calls.append(("regenerate",))
        return self._words("once more")

    def undo(self) -> str:
        self.calls.append(("undo",))
        return "one [b]two"

    def set(self, **settings: object) -> None:
        self.settings = validated(ChatSettings, {**dict(self.settings), **settings})

    def clear(self) -> None:
        self.calls.append(("clear",))

    def save(self, path: Path) -> None:
        if path.name == "full":
            raise MlxchatError("Cannot write full: No space left on device.", "Save elsewhere.")
        self.calls.append(("save", str(path)))

    def load(self, path: Path) -> None:
        self.calls.append(("load", str(path)))
        self.messages = LOADED


LOADED = (
    Message("system", "Be brief."),
    *(Message(("user", "assistant")[i % 2], f"message {i}") for i in range(8)),
    Message("user", "Half of 48?"),
    Message(
        "assistant", (Part("python", "48/2"), Part("python_output", "24.0"), Part("text", "!"))
    ),
)


def typed(*lines: str | BaseException | type[BaseException]) -> Callable[[str], str]:
    """Reads these lines, raising those that are exceptions, then Ctrl-D."""
    rest = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        assert prompt == "> "
        line = next(rest)
        if isinstance(line, str):
            return line
        raise line

    return read


def talk(chat: Parrot, *lines: str | BaseException | type[BaseException], width: int = 80) -> str:
    console = LiteralConsole(file=io.StringIO(), width=width)
    converse(chat, "d4, step 100", console, typed(*lines))
    return console.file.getvalue()


def test_the_chat_names_the_model() -> None:
    assert "talking with d4, step 100" in talk(Parrot())


def test_the_chat_says_that_a_base_model_continues_text() -> None:
    shown = talk(Parrot(conversational=False))
    assert "d4, step 100 is a base model: it continues your text" in shown


def test_answers_are_written_as_they_are() -> None:
    chat = Parrot()
    shown = talk(chat, "[bold]no[/bold] markup, [/] 1.5 :smile:")
    assert "\n[bold]no[/bold] markup, [/] 1.5 :smile: \n" in shown
    assert chat.calls == [("reply", "[bold]no[/bold] markup, [/] 1.5 :smile:")]


def test_answers_cannot_control_the_terminal() -> None:
    shown = talk(Parrot(), "a\x1b[2Jb\r\x07\x9bc\td")
    assert "a[2Jbc\td" in shown


def test_characters_that_the_terminal_lacks_become_question_marks() -> None:
    raw = io.BytesIO()
    console = console_for(io.TextIOWrapper(raw, encoding="ascii"))
    answer_prompt(Parrot(), "naïve", console)
    assert raw.getvalue() == b"na?ve \n"


def test_an_empty_line_is_ignored_by_a_chat_and_continued_by_a_base_model() -> None:
    chat, base = Parrot(), Parrot(conversational=False)
    talk(chat, "", "  ")
    talk(base, "")
    assert chat.calls == []
    assert base.calls == [("reply", "")]


def test_text_keeps_its_spaces() -> None:
    base = Parrot(conversational=False)
    talk(base, " and then ")
    assert base.calls == [("reply", " and then ")]


def test_save_load_and_clear_are_carried_out(tmp_path: Path) -> None:
    chat = Parrot()
    path = tmp_path / "my chat.json"
    shown = talk(chat, f"/save {path}", "/clear", f"  /load   {path} ", width=500)
    assert chat.calls == [("save", str(path)), ("clear",), ("load", str(path))]
    assert f"Saved to {path}." in shown
    assert f"Resumed {path}: 5 turns." in shown


def test_what_was_loaded_is_shown() -> None:
    lines = talk(Parrot(), "/load x", width=500).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Resumed"))
    assert lines[first + 1 :] == [
        "system: Be brief.",
        "… 2 earlier turns …",
        "> message 4",
        "message 5",
        "> message 6",
        "message 7",
        "> Half of 48?",
        "[48/2 = 24.0]!",
    ]


def test_tilde_is_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    chat = Parrot()
    shown = talk(chat, "/save ~/x", "/save ~nobody-of-that-name/x")
    assert chat.calls == [("save", str(tmp_path / "x"))]
    assert "is no such user" in shown


def test_help_lists_every_command_and_key() -> None:
    stream = io.StringIO()
    keys = [("Alt+Enter", "start a new line")]
    converse(Parrot(), "d4", LiteralConsole(file=stream, width=40), typed("/help"), keys)
    shown = stream.getvalue()
    assert all(f"\n{name}" in shown for name in SLASH_COMMANDS)
    assert all(f"/{name.replace('_', '-')}" in shown for name, _ in ChatSettings())
    assert "\nAlt+Enter" in shown
    assert max(map(len, shown.splitlines())) <= 40


def test_help_is_aligned() -> None:
    lines = talk(Parrot(), "/help", width=80).splitlines()
    purposes = ("start a new", "write the", "resume the", "show this", "quit, as", "change a")
    starts = {line.index(purpose) for purpose in purposes for line in lines if purpose in line}
    assert starts == {len("/temperature 0.8") + 2}


def test_every_setting_is_a_command() -> None:
    chat = Parrot()
    shown = talk(chat, "/temperature 0.25", "/top-k 7", "/top-k", "/max-tokens 9", "/settings")
    assert chat.settings == ChatSettings(temperature=0.25, top_k=7, max_tokens=9)
    assert shown.count("top-k  7") == 2
    assert "repetition-penalty  1.0" in shown
    talk(chat, "/system Be brief,\nbut kind.")
    assert chat.settings.system == "Be brief,\nbut kind."
    assert "system  none" in talk(chat, "/system none", "/top-k none")
    assert (chat.settings.system, chat.settings.top_k) == (None, None)


def test_a_setting_out_of_bounds_is_named_as_it_was_typed() -> None:
    chat = Parrot()
    shown = talk(chat, "/top-p 2", "/seed x", width=500)
    assert "/top-p 2: input should be less than or equal to 1. /top-p: Sample only" in shown
    assert "/seed x: input should be a valid integer" in shown
    assert chat.settings == ChatSettings()


def test_an_answer_is_given_again_or_taken_back() -> None:
    chat = Parrot()
    shown = talk(chat, "/regenerate", "/undo")
    assert chat.calls == [("regenerate",), ("undo",)]
    assert "\nonce more \nTook back: one [b]two\n" in shown
    assert "At temperature 0" not in shown
    assert "At temperature 0" in talk(chat, "/temperature 0", "/regenerate")


def test_several_lines_that_begin_with_a_slash_are_a_message() -> None:
    chat = Parrot()
    talk(chat, "// a\n// b", "/undo\n")
    assert chat.calls == [("reply", "// a\n// b"), ("undo",)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("//etc/hosts is a file", "/etc/hosts is a file"),
        ("//undo", "/undo"),
        ("//undo\nis a command", "/undo\nis a command"),
        (" //undo ", " /undo"),
        ("// a comment", "/ a comment"),
        ("///", "//"),
        ("//etc\nis several lines", "//etc\nis several lines"),
    ],
)
def test_two_slashes_begin_a_message_with_one(line: str, message: str) -> None:
    chat = Parrot()
    talk(chat, line)
    assert chat.calls == [("reply", message)]


def test_that_two_slashes_begin_a_message_is_told() -> None:
    assert "//TEXT            send a message that begins with a slash" in talk(Parrot(), "/help")
    for line in ("/etc/hosts is a file", "/sav x"):
        assert "To send a message that starts with a slash, type two slashes" in talk(
            Parrot(), line, width=200
        )


@pytest.mark.parametrize("line", ["/sav x", "/", "//", "/[red]x"])
def test_unknown_commands_are_named(line: str) -> None:
    chat = Parrot()
    assert f"Unknown command {line.split()[0]}. " in talk(chat, line)
    assert chat.calls == []


@pytest.mark.parametrize("line", ["/save", "/load ", "/clear all", "/exit now", "/help me"])
def test_misuse_of_a_command_shows_its_usage(line: str) -> None:
    chat = Parrot()
    assert f"Usage: {line.split()[0]}" in talk(chat, line)
    assert chat.calls == []


def test_exit_ends_the_chat() -> None:
    chat = Parrot()
    talk(chat, " /exit ", "not read")
    assert chat.calls == []


def test_errors_are_shown_and_the_conversation_continues() -> None:
    chat = Parrot()
    shown = talk(chat, "too long", "/save full", "Hello")
    assert "The message is too long. Shorten it." in shown
    assert "No space left on device. Save elsewhere." in shown
    assert chat.calls == [("reply", "Hello")]


def test_a_line_in_another_encoding_is_refused() -> None:
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    chat = Parrot()
    assert "not utf-8 text" in talk(chat, error, "Hello")
    assert chat.calls == [("reply", "Hello")]


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    chat = Parrot(after=2)
    shown = talk(chat, "one two three", "four")
    assert "one two \nStopped." in shown
    assert "three" not in shown
    assert chat.closed
    assert chat.calls[-1] == ("reply", "four")


def test_ctrl_c_at_the_prompt_clears_the_line_and_twice_quits() -> None:
    chat = Parrot()
    shown = talk(chat, KeyboardInterrupt, "one", KeyboardInterrupt, KeyboardInterrupt, "not read")
    assert chat.calls == [("reply", "one")]
    assert shown.count("Ctrl-C again") == 2


def test_ctrl_c_on_what_is_typed_never_quits() -> None:
    chat = Parrot()
    talk(chat, KeyboardInterrupt("a"), KeyboardInterrupt("b"), "one", KeyboardInterrupt, "two")
    assert chat.calls == [("reply", "one"), ("reply", "two")]


def test_an_answer_cut_off_is_noted() -> None:
    chat, base = Parrot(), Parrot(conversational=False)
    chat.truncated = base.truncated = True
    assert "cut off" in talk(chat, "one")
    assert "cut off" not in talk(base, "one")


def test_that_the_context_is_outgrown_is_said_once() -> None:
    class Forgetful(Parrot):
        def reply(self, text: str) -> Generator[Part, None, None]:
            self.dropped += 1
            yield from super().reply(text)

        def clear(self) -> None:
            self.dropped = 0

    lines = ("one", "two", "/undo", "three", "/clear", "four", "five")
    assert talk(Forgetful(), *lines, width=200).count("no longer fits") == 2


class Outgrown(Parrot):
    """A chat whose context holds two turns."""

    turns = 0

    def reply(self, text: str) -> Generator[Part, None, None]:
        self.turns += 1
        self.dropped = max(0, self.turns - 2)
        yield from super().reply(text)

    def undo(self) -> str:
        self.turns -= 1
        self.dropped = max(0, self.turns - 2)
        return super().undo()

    def load(self, path: Path) -> None:
        super().load(path)
        self.turns, self.dropped = 5, 0


def test_that_the_context_is_outgrown_is_said_after_an_answer_that_is_stopped() -> None:
    shown = talk(Outgrown(after=2), "one", "two", "three is stopped", "four", width=200)
    assert shown.index("Stopped.") < shown.index("no longer fits")
    assert shown.count("no longer fits") == 1


def test_that_the_context_is_outgrown_is_not_said_again_after_undo() -> None:
    lines = ("one", "two", "three", "/undo", "three", "/undo", "/undo", "two", "three")
    assert talk(Outgrown(), *lines, width=200).count("no longer fits") == 1
    assert talk(Outgrown(), *lines, "/load x", "four", width=200).count("no longer fits") == 2


def test_one_answer_is_only_the_answer() -> None:
    console = LiteralConsole(file=io.StringIO())
    answer_prompt(Parrot(), "one two", console)
    assert console.file.getvalue() == "one two \n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input; its descriptor."""
    own, theirs = pty.openpty()
    with os.fdopen(theirs, "r+b", buffering=0) as file:
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setenv("TERM", "xterm")
        yield theirs
    os.close(own)


@pytest.mark.parametrize("after", [None, 2])
@pytest.mark.parametrize("shown", [True, False])
def test_what_is_typed_while_an_answer_streams_is_not_shown_in_it(
    after: int | None, shown: bool, terminal: int
) -> None:
    def echoes() -> bool:
        return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)

    class Looking(Parrot):
        def _words(self, text: str) -> Iterator[Part]:
            for piece in super()._words(text):
                seen.append(echoes())
                yield piece

    seen: list[bool] = []
    before = termios.tcgetattr(terminal)
    console = LiteralConsole(file=io.StringIO(), force_terminal=shown)
    converse(Looking(after=after), "d4", console, typed("one two three", "four"))
    assert seen and all(echo != shown for echo in seen)
    assert termios.tcgetattr(terminal) == before


class Computing(Parrot):
    """Says these pieces whatever it is told."""

    def __init__(self, *pieces: tuple[str, str]) -> None:
        super().__init__()
        self.pieces = pieces

    def reply(self, text: str) -> Generator[Part, None, None]:
        yield from (Part(*piece) for piece in self.pieces)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ("t:Half is|p|p:48|p:/2|o|o:24|o:.0|t: |t:24.", "Half is[48/2 = 24.0] 24."),
        ("p|p:1/0|t:No.", "[1/0]No."),
        ("p|p:1|p|p:2|o|o:2", "[1][2 = 2]"),
        ("p|p:1|o|o:1|p|p:2|o|o:2", "[1 = 1][2 = 2]"),
        ("o|o:1|o|o:2|t:!", "[1][2]!"),
        ("p", "[]"),
    ],
)
def test_calls_are_shown_in_brackets(pieces: str, shown: str) -> None:
    types = {"t": "text", "p": "python", "o": "python_output"}
    split = [piece.partition(":") for piece in pieces.split("|")]
    chat = Computing(*((types[kind], text) for kind, _, text in split))
    plain = LiteralConsole(file=io.StringIO(), width=5)
    answer_prompt(chat, "Half of 48?", plain)
    assert plain.file.getvalue() == shown + "\n"


def test_a_terminal_shows_calls_dimmed() -> None:
    chat = Computing(("text", "A"), ("python", ""), ("python", "[b]:1:\x1b"), ("text", "B"))
    console = LiteralConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    answer_prompt(chat, "Which?", console)
    assert console.file.getvalue() == "A\x1b[2m[[b]:1:]\x1b[0mB\n"


def test_one_answer_interrupted_ends_its_line_and_is_closed() -> None:
    console, chat = LiteralConsole(file=io.StringIO()), Parrot(after=1)
    with pytest.raises(KeyboardInterrupt):
        answer_prompt(chat, "one two", console)
    assert console.file.getvalue() == "one \n"
    assert chat.closed


def test_a_reader_that_leaves_closes_the_answer() -> None:
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    chat = Parrot()
    with pytest.raises(BrokenPipeError):
        answer_prompt(chat, "one two", LiteralConsole(file=Pipe()))
    assert chat.closed


def test_the_repl_imports_neither_arrays_nor_the_command_line() -> None:
    code = (
        "import sys, mlxchat.ui.repl, mlxchat.config.inference;"
        "print([m for m in ('mlx.core', 'typer', 'prompt_toolkit') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert shown.stdout == "[]\n"
