"""A process that crashes is started again; one that ends by itself is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.program import Program

from mlxchat import __version__
from mlxchat.cli.supervise import supervise
from mlxchat.errors import MlxchatError
from mlxchat.monitor.machine import command_of
from mlxchat.system import own_command

SCRIPT = """
import os, signal, sys
from pathlib import Path
folder, endings = Path(sys.argv[1]), sys.argv[2].split(",")
starts = folder / "starts"
number = len(starts.read_text().split()) if starts.exists() else 0
with starts.open("a") as file:
    print(sys.argv[3], file=file)
saved, _, ending = endings[min(number, len(endings) - 1)].rpartition(":")
if saved:
    if sys.argv[3] == "fresh" and (folder / "run").exists():
        (folder / "run").rename(folder / "old")
    (folder / "run" / f"step_{int(saved):06d}").mkdir(parents=True)
if ending.isdigit():
    sys.exit(int(ending))
signal.signal(getattr(signal, ending), signal.SIG_DFL) if ending != "SIGKILL" else None
os.kill(os.getpid(), getattr(signal, ending))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxchat.cli.supervise.FIRST_PAUSE", 0.01)


class Supervised:
    """Processes that end as told, one after the other: ``STEP:ENDING``, the last one for ever.

    ``starts`` says of each whether it started from scratch; ``told``, what the user was told.
    """

    def __init__(self, folder: Path, endings: str, fresh: bool = False) -> None:
        self.told: list[str] = []
        self._folder, self._endings = folder, endings
        self._fresh = fresh

    @property
    def starts(self) -> list[str]:
        return (self._folder / "starts").read_text().split()

    def run(self) -> int:
        return supervise(self._command, self._folder / "run", self._fresh, self.told.append)

    def _command(self, fresh: bool) -> list[str]:
        how = "fresh" if fresh else "on"
        return [sys.executable, "-S", "-c", SCRIPT, str(self._folder), self._endings, how]


@pytest.mark.parametrize(
    ("ending", "code"),
    [("0", 0), ("1", 1), ("2", 2), ("130", 130), ("143", 143), ("SIGTERM", 143), ("75", 75)],
)
def test_a_process_that_ends_by_itself_is_not_restarted(
    tmp_path: Path, ending: str, code: int
) -> None:
    supervised = Supervised(tmp_path, ending)
    assert supervised.run() == code
    assert supervised.starts == ["on"]
    assert supervised.told == []


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGSEGV", "SIGABRT", "70"])
def test_a_process_that_crashes_is_restarted(tmp_path: Path, ending: str) -> None:
    supervised = Supervised(tmp_path, f"{ending},8:{ending},{ending},0")
    assert supervised.run() == 0
    assert supervised.starts == ["on"] * 4
    why = "a backend error" if ending == "70" else ending
    assert [why in text for text in supervised.told] == [True] * 3
    assert "from the beginning in 0 seconds (crash 1 of at most 5" in supervised.told[0]
    assert "from step 8 in 0 seconds (crash 1 of at most 5" in supervised.told[1]
    assert "from step 8 in 0 seconds (crash 2 of at most 5" in supervised.told[2]


@pytest.mark.slow
def test_after_a_crash_it_waits_for_the_lock(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "SIGKILL," + "75," * 6 + "8:SIGKILL,75,0")
    assert supervised.run() == 0
    assert len(supervised.starts) == 10
    assert ["Another process" in text for text in supervised.told] == (
        [False] + [True] * 6 + [False, True]
    )
    assert "crash 1 of at most 5" in supervised.told[7]


def test_crashes_without_progress_are_bounded(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "SIGKILL,2:SIGKILL,4:SIGKILL,SIGABRT")
    with pytest.raises(MlxchatError, match=r"crashed 5 times after step 4 .* because of SIGABRT"):
        supervised.run()
    assert len(supervised.starts) == 7
    pauses = [text.partition(" in ")[2].split()[0] for text in supervised.told]
    assert len(pauses) == 6


def test_pauses_double_up_to_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def pause(_: object, seconds: float) -> bool:
        pauses.append(seconds)
        return True

    monkeypatch.setattr("mlxchat.cli.supervise.FIRST_PAUSE", 1.0)
    monkeypatch.setattr("mlxchat.cli.supervise.MAX_CRASHES", 9)
    monkeypatch.setattr("mlxchat.cli.supervise.Forwarding.pause", pause)
    with pytest.raises(MlxchatError):
        Supervised(tmp_path, "SIGKILL").run()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_fresh_restarts_from_scratch_only_until_a_step_is_saved(tmp_path: Path) -> None:
    (tmp_path / "run" / "step_000009").mkdir(parents=True)
    supervised = Supervised(tmp_path, "SIGKILL,2:SIGKILL,SIGKILL,0", fresh=True)
    assert supervised.run() == 0
    assert supervised.starts == ["fresh", "fresh", "on", "on"]


def test_sigterm_during_a_pause_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxchat.cli.supervise.FIRST_PAUSE", 60.0)
    supervised = Supervised(tmp_path, "SIGKILL")

    def end() -> None:
        while not supervised.told:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    assert supervised.run() == 143
    thread.join()
    assert len(supervised.starts) == 1


def test_the_program_starts_itself_whatever_is_in_the_working_directory(tmp_path: Path) -> None:
    package = tmp_path / "mlxchat"
    package.mkdir()
    for file in (package / "__init__.py", package / "__main__.py", tmp_path / "random.py"):
        file.write_text("raise SystemExit('the wrong file was run')")
    command = own_command("mlxchat", "--version")
    started = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (started.stdout, started.stderr) == (f"mlxchat {__version__}\n", "")
    assert command_of(own_command("mlxchat", "train", "--depth", "4")) == ["train", "--depth", "4"]


HANGING_UP = """
import os, signal, time
ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
os.kill(os.getppid(), signal.SIGHUP)
if not ignored:
    time.sleep(60)
"""


@pytest.mark.parametrize(("handler", "code"), [(signal.SIG_IGN, 0), (signal.SIG_DFL, 129)])
def test_a_closed_terminal_ends_the_run_unless_ignored(
    handler: signal.Handlers, code: int, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGHUP, handler)  # nohup ignores it
    command = [sys.executable, "-S", "-c", HANGING_UP]
    try:
        assert supervise(lambda _: command, tmp_path / "run", False, print) == code
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("train --depth 4", "base_checkpoints/d4"),
        ("mid --source d4 --data builtin", "mid_checkpoints/d4-mid"),
        ("sft --source d4 --data builtin", "chatsft_checkpoints/d4-sft"),
        ("rl --source d4-sft --task arithmetic", "chatrl_checkpoints/d4-sft-rl"),
    ],
)
def test_the_checkpoints_of_the_very_stage_tell_whether_a_run_gets_on(
    words: str,
    folder: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also those of a new run, which no folder tells the stage of."""
    called: list[tuple[list[str], Path]] = []

    def train(arguments: list[str], run: Path, fresh: bool, json: bool) -> int:
        called.append((arguments, run))
        return 7

    monkeypatch.setattr("mlxchat.cli.stages.train_supervised", train)
    code, _, _ = Program(monkeypatch, capsys)(*words.split(), "--supervise")
    [(arguments, run)] = called
    assert (code, run) == (7, home / folder)
    assert arguments[: len(words.split())] == words.split()
    assert "--no-stay-awake" in arguments and "--supervise" not in arguments
