"""The line editor, typed at through a pipe in place of a terminal."""

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlxchat.ui import line_editor
from mlxchat.ui.line_editor import CommandCompleter, LineEditor, open_history

COMMANDS = {"/load": "resume a conversation", "/undo": "take back", "/unknown": "?"}


def typed(keys: str, count: int = 1, history: Path | None = None) -> list[str]:
    """Return the message that the editor makes of these keys."""
    with create_pipe_input() as pipe:
        kept = open_history(history)
        editor = LineEditor(COMMANDS, ["/load"], kept, input=pipe, output=DummyOutput())
        pipe.send_text(keys)
        return [editor("> ") for _ in range(count)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("Hello\r", "Hello"),
        ("one\x1b\rtwo\x1b\r\r", "one\ntwo\n"),
        ("\x1b[200~one\r\n\ttwo\nthree\x1b[201~!\r", "one\n\ttwo\nthree!"),
        ("北京é\x7f\x7f\r", "北"),
    ],
)
def test_keys_and_pasted_text_become_a_message(keys: str, message: str) -> None:
    assert typed(keys) == [message]


def completed(text: str) -> list[str]:
    """Return the texts that completion offers."""
    completer = CommandCompleter(COMMANDS, frozenset(["/load"]))
    found = completer.get_completions(Document(text), CompleteEvent())
    return [text[: len(text) + each.start_position] + each.text for each in found]


def test_commands_and_names_of_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "story.json").touch()
    assert completed("/lo") == ["/load"]
    assert completed("/un") == ["/undo", "/unknown"]
    assert completed("/") == [*COMMANDS]
    assert completed(f"/load {tmp_path}/st") == [f"/load {tmp_path}/story.json"]
    for text in (
        "",
        "un",
        "see /un",
        "/undo ",
        f"{tmp_path}/st",
        f"/undo {tmp_path}/st",
        "/un\n/un",
    ):
        assert completed(text) == []


def test_ctrl_c_tells_what_it_drops() -> None:
    for keys, dropped in (("abc\x03", ("abc",)), ("\x03", ())):
        with pytest.raises(KeyboardInterrupt) as pressed:
            typed(keys)
        assert pressed.value.args == dropped


def test_ctrl_d_is_the_end() -> None:
    with pytest.raises(EOFError):
        typed("\x04")


def test_the_history_is_kept_between_sessions_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    assert typed("first\x1b\rof two\rsecond 北\r", 2, path) == ["first\nof two", "second 北"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept(path) == ["second 北", "first\nof two"]


def test_an_open_history_becomes_private_and_damage_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'"one"\n{broken\n3\n\xff\n"two"\n')
    path.chmod(0o644)
    assert kept(path) == ["two", "one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def kept(path: Path) -> Sequence[str]:
    return list(open_history(path).load_history_strings())


def test_a_long_history_loses_its_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_editor, "MOST_ENTRIES", 3)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f'"{i}"\n' for i in range(7)))
    assert kept(path) == ["6", "5", "4"]
    assert path.read_text() == '"4"\n"5"\n"6"\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(line_editor, "_MOST_BYTES", 9)
    assert kept(path) == ["6", "5"]


def test_a_long_text_is_not_kept_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = open_history(path)
    for text in ("one", "x" * 2**21, "é" * 40_000, "y" * 60_000, "two"):
        history.append_string(text)
    assert history.get_strings()[1] == "x" * 2**21
    assert kept(path) == ["two", "y" * 60_000, "one"]


def test_a_long_line_in_the_file_is_removed_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f'"one"\n"{"x" * 2**20}"\n"two"\n')
    assert kept(path) == ["two", "one"]
    assert path.read_text() == '"one"\n"two"\n'


def test_a_history_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        open_history(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        open_history(tmp_path / "file" / "history")


def test_what_is_typed_on_a_full_disk_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = open_history(tmp_path / "history.jsonl")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    history.append_string("Hello")
    assert history.get_strings() == ["Hello"]


def test_without_a_file_nothing_is_kept() -> None:
    assert isinstance(open_history(None), InMemoryHistory)
