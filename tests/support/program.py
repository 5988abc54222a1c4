"""The program run within this process: as `mlxchat` in a shell, without the time of a start."""

import sys
import threading

import pytest

from mlxchat.cli.app import main


class Program:
    """Run a command with the arguments of a shell.

    Args:
        monkeypatch: undoes what the program sets for its process.
        capsys: captures what it prints.
        prefix: arguments that come before those of each call.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *prefix: str
    ) -> None:
        monkeypatch.setattr("signal.signal", lambda *_: None)
        monkeypatch.setattr("warnings.showwarning", None)
        monkeypatch.setattr("sys.excepthook", sys.excepthook)
        monkeypatch.setattr("threading.excepthook", threading.excepthook)
        self._monkeypatch, self._capsys, self._prefix = monkeypatch, capsys, prefix

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, the output and the errors."""
        self._monkeypatch.setattr(sys, "argv", ["mlxchat", *self._prefix, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self._capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err
