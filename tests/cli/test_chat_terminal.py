"""`mlxchat chat` in a terminal, from its first line to its last."""

import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api_runs import small_runs

from mlxchat.cli import chat as command
from mlxchat.home import Home
from mlxchat.ui.line_editor import EDITOR_KEYS
from mlxchat.ui.output import LiteralConsole

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROGRAM = [sys.executable, "-c", "from mlxchat.cli.app import main; main()", "chat"]


class Terminal:
    """A chat in a terminal of 80 columns; what it shows, without colors and the cursor's ways."""

    def __init__(self, *arguments: str) -> None:
        self._own, theirs = pty.openpty()
        self._received = b""
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "80"}
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def shown_until(self, text: str, seconds: float = 60) -> str:
        """What is shown after what earlier calls waited for, up to this text."""
        end = time.monotonic() + seconds
        while text not in (shown := CONTROL.sub("", self._received.decode("utf-8", "replace"))):
            assert time.monotonic() < end, shown
            if select.select([self._own], [], [], 0.1)[0]:
                self._received += os.read(self._own, 4096)
        earlier, _, later = shown.partition(text)
        self._received = later.encode()
        return earlier + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def opened(home: Path, tmp_path: Path) -> Iterator[Terminal]:
    small_runs(home, tmp_path)
    terminal = Terminal("--model-tag", "quickstart-sft", "--max-tokens", "8")
    yield terminal
    terminal.close()


@pytest.mark.slow
def test_a_chat_in_a_terminal(opened: Terminal) -> None:
    shown = opened.shown_until("You are talking with")
    assert "Loading quickstart-sft" in shown
    opened.shown_until("quits.\r\n>")
    opened.type("\x1b[200~What does\na cow say?\x1b[201~\x1b\rPlease.\r")
    opened.type("/undo\r")
    opened.shown_until("Took back: What does a cow say? Please.\r\n>")
    opened.type("half a mess\x03")
    opened.shown_until("Press Ctrl-C again, or Ctrl-D, to quit.\r\n>")
    opened.type("\x04")
    assert opened.process.wait(20) == 0
    history = Home.from_environment().chat_history
    assert history.read_text() == '"What does\\na cow say?\\nPlease."\n"/undo"\n'
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_chat_ends_by_sigterm_and_leaves_the_terminal_as_it_was(opened: Terminal) -> None:
    before = termios.tcgetattr(opened._own)
    opened.shown_until("quits.\r\n>")
    opened.type("half a mess")
    opened.shown_until("mess")
    opened.process.send_signal(signal.SIGTERM)
    assert opened.process.wait(20) == 128 + signal.SIGTERM
    assert termios.tcgetattr(opened._own) == before


def test_a_history_that_cannot_be_kept_is_told(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    (home / "chat_history.jsonl").mkdir()
    console = LiteralConsole(force_terminal=True)
    _, keys = command._reader(Settled(), console, history=True)
    assert keys == EDITOR_KEYS
    assert "What you type will not be remembered" in capsys.readouterr().err
    command._reader(Settled(), console, history=False)
    assert capsys.readouterr().err == ""
    assert command._reader(Settled(), LiteralConsole(force_terminal=False), True)[1] == ()


class Settled:
    """A chat without settings."""

    settings = ()
