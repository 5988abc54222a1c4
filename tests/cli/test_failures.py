"""Exit codes and messages of commands that fail, and of output that nobody can have."""

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.program import Program

from mlxchat.cli import app, failures
from mlxchat.device_failures import device_error
from mlxchat.errors import BackendError, DataError, DeviceError, LockedError

MAIN = [sys.executable, "-c", "from mlxchat.cli.app import main; main()"]
METAL = "[METAL] Command buffer execution failed: Insufficient Memory (00000008)"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


def failing(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("No.", "Do."), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1),
        (BackendError("MLX has no backend on this machine."), 1),
        (MemoryError(), 1),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), 1),
        (LockedError("Another process trains this run."), 75),
        (DeviceError("MLX's device failed."), 70),
        (RuntimeError(METAL), 70),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"), 70),
        (RuntimeError("cudaMallocManaged(&data, size) failed: out of memory"), 70),
        (RuntimeError("cuGraphLaunch failed: an illegal memory access was encountered"), 70),
        (RuntimeError("cublasLtMatmul(handle_, a) failed with code: 13."), 70),
        (MemoryError("std::bad_alloc"), 70),
    ],
)
def test_seventy_is_the_code_of_a_device_that_failed_and_of_nothing_else(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.exit_code(failing(error)) == code
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("Error: ") and len(rest) <= 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Could not determine home directory."),
        RuntimeError("can't start new thread"),
        RuntimeError("Custom handlers have failed"),
        RecursionError("maximum recursion depth exceeded"),
        NotImplementedError("[METAL] kernel"),
        KeyError("x"),
    ],
)
def test_what_nobody_foresaw_is_left_to_the_hook(error: Exception) -> None:
    assert device_error(error) is None
    with pytest.raises(type(error)):
        failures.exit_code(failing(error))


def test_a_traceback_of_a_mistake_goes_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failures.report_unforeseen(RecursionError, RecursionError("too\ndeep"), None)
    first, second = capsys.readouterr().err.splitlines()
    (stored,) = tmp_path.iterdir()
    assert first == "Error: This is a bug in mlxchat. RecursionError: too deep."
    assert second == f"Please report it with its traceback: {stored}"
    assert "RecursionError: too" in stored.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    failures.report_unforeseen(KeyError, KeyError(), None)
    assert capsys.readouterr().err.splitlines()[1] == failures.NO_TRACEBACK_YET


def test_a_mistake_ends_a_process_with_one_and_without_a_traceback(tmp_path: Path) -> None:
    script = (
        "from mlxchat.cli import app\n"
        "import mlxchat.cli.data\n"
        "def mistaken(home): raise ZeroDivisionError('\\x1b[31mred')\n"
        "mlxchat.cli.data.status = mistaken\n"
        "app.main()\n"
    )
    command = [sys.executable, "-c", script, "data", "status"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert first == "Error: This is a bug in mlxchat. ZeroDivisionError: [31mred."
    (stored,) = tmp_path.iterdir()
    assert second.endswith(str(stored))


def test_the_traceback_that_was_asked_for_cannot_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXCHAT_DEBUG", "1")
    assert failures.exit_code(failing(DataError("\x1b[31mred"))) == 1
    failures.report_unforeseen(ValueError, ValueError("\x1b[31mred"), None)
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "DataError: [31mred" in errors
    assert "ValueError: [31mred" in errors and "\x1b" not in errors


def test_a_thread_reports_as_the_program_does(capsys: pytest.CaptureFixture[str]) -> None:
    for error, printed in ((KeyError("x"), "This is a bug"), (SystemExit(1), "")):
        facts = threading.ExceptHookArgs((type(error), error, None, None))
        app._report_thread(facts)
        assert (printed in capsys.readouterr().err) if printed else True


class Full(io.StringIO):
    """A stream on a full disk, which says so when it is flushed."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


COMMANDS = [
    ["--help"],
    ["--version"],
    ["--show-completion"],
    ["train", "--help"],
    ["info", "--depth", "1"],
    ["info", "--depth", "1", "--json"],
    ["data", "status"],
    ["data", "status", "--json"],
    ["checkpoints", "list"],
    ["checkpoints", "list", "--json"],
    ["checkpoints", "verify", "--json"],
    ["checkpoints", "prune", "--dry-run", "--json"],
    ["monitor", "--once"],
    ["monitor", "--json"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_output_that_was_lost_is_an_error(
    arguments: list[str], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    code, _, errors = program(*arguments)
    assert code == 1
    first, second = errors.splitlines()
    assert first == "Error: Standard output could not be written: No space left on device."
    assert second


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_process_whose_output_was_lost_says_nothing_more_at_its_end(stream: str) -> None:
    command = [*MAIN, "data", "status", "--json"] if stream == "stdout" else [*MAIN, "data", "x"]
    with Path("/dev/full").open("w") as full:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        result = subprocess.run(command, text=True, **pipes)
    assert result.returncode == (1 if stream == "stdout" else 2)
    assert len((result.stderr or "").splitlines()) == (2 if stream == "stdout" else 0)


def test_streams_that_were_closed_are_no_failure() -> None:
    closing = f"exec {sys.executable} -c '{MAIN[2]}' data status >&- 2>&-"
    assert subprocess.run(["bash", "-c", closing]).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["\x1b[31mred"],
        ["train", "--\x1b[31mred"],
        ["train", "--depth", "\x1b[31mred\x9b"],
        ["train", "--model-tag", "\x1b[31mred\x9b\n[/]"],
        ["info", "--arch", "\x1b[31mred\x9b"],
        ["chat", "--checkpoint", "\x1b[31mred\x9b\n[/]"],
        ["chat", "--model-tag", "\x1b[31mred\x9b\n[/]"],
        ["data", "fetch", "--dataset", "\x1b[31mred\x9b\n[/]"],
        ["data", "fetch", "--from", "\x1b[31mred\x9b\n[/]"],
        ["import", "\x1b[31mred\x9b\n[/]"],
        ["export", "--to", "mlx-lm", "--checkpoint", "\x1b[31mred\x9b\n[/]"],
        ["checkpoints", "verify", "--model-tag", "\x1b[31mred\x9b\n[/]"],
        ["eval", "chat", "--tasks", "\x1b[31mred\x9b\n[/]"],
    ],
    ids=lambda arguments: " ".join(arguments[:3:2]).encode("ascii", "backslashreplace").decode(),
)
def test_what_a_user_types_cannot_control_the_terminal(
    arguments: list[str], program: Program
) -> None:
    code, output, errors = program(*arguments)
    assert code in (1, 2)
    assert {letter for letter in output + errors if not letter.isprintable()} == {"\n"}
    assert len(errors.splitlines()) == 2
