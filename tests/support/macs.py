"""Stands in for a Mac's C library and its program ``caffeinate``."""

import ctypes
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

CAFFEINATE = """#!/bin/sh
echo $$ "$@" >> {record}
exec sleep 60
"""


class FakeMac:
    """Makes this machine a Mac within a test: its platform, its C library.

    Args:
        monkeypatch: undoes it.
        numbers: what its kernel keeps, by name.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, numbers: Mapping[str, int]) -> None:
        self.numbers = dict(numbers)
        self.uuid: uuid.UUID | None = uuid.UUID(int=7)
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(ctypes, "CDLL", lambda _: self)

    def sysctlbyname(self, name: bytes, number: object, size: object, *nothing: object) -> int:
        if name.decode() not in self.numbers:
            return -1
        assert ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t)).contents.value == 4
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int)).contents.value = self.numbers[
            name.decode()
        ]
        return 0

    def gethostuuid(self, number: ctypes.Array[ctypes.c_ubyte], wait: object) -> int:
        if self.uuid is None:
            return -1
        number[:] = list(self.uuid.bytes)
        return 0

    def caffeinate(self, folder: Path) -> "FakeCaffeinate":
        """Put the program into a folder that comes first in the PATH."""
        self._monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return FakeCaffeinate(folder)


class FakeCaffeinate:
    """A program that does nothing for a minute, and writes down how it was started."""

    def __init__(self, folder: Path) -> None:
        self._record = folder / "caffeinated"
        program = folder / "caffeinate"
        program.write_text(CAFFEINATE.format(record=self._record))
        program.chmod(0o755)

    @property
    def starts(self) -> list[list[str]]:
        """The process id and the arguments of each start."""
        text = self._record.read_text() if self._record.exists() else ""
        return [line.split() for line in text.splitlines()]

    def await_start(self, number: int = 1) -> list[str]:
        """Wait until it has started ``number`` times, and return its latest arguments."""
        deadline = time.monotonic() + 20
        while len(self.starts) < number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.starts[-1][1:]

    def runs(self) -> bool:
        """Return whether the one started last is still running."""
        return psutil.pid_exists(int(self.starts[-1][0]))
