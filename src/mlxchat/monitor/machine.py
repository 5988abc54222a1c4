"""The machine as it is now: memory and its pressure, processes of mlxchat, room on the disk."""

import ctypes
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import psutil

from mlxchat.home import Home
from mlxchat.telemetry.events import MACHINE_FULL
from mlxchat.telemetry.status import Process

SAME_START = 2.0  # seconds by which two readings of a process's start may differ
STALLED = 0.1  # of the last ten seconds: beyond, waiting for memory is felt
MACOS_LEVELS: dict[int, "Pressure"] = {1: "normal", 2: "warning", 4: "critical"}

Pressure = Literal["normal", "warning", "critical"]


@dataclass(frozen=True)
class Machine:
    """Memory of the whole machine, in bytes."""

    host: str
    memory_used: int
    memory_total: int
    swap_used: int
    swap_total: int
    pressure: Pressure | None  # None where the system does not tell

    @property
    def full(self) -> bool:
        """Whether there is so little left that it may begin to swap."""
        return self.memory_used > MACHINE_FULL * self.memory_total


@dataclass(frozen=True)
class Program:
    """A running process of mlxchat, found by its command line."""

    pid: int
    started: float  # seconds since the epoch
    command: str  # without the program's own name: "chat --model-tag d4"
    resident: int  # bytes in memory, MLX's among them (a GPU's own are not)


@dataclass(frozen=True)
class Disk:
    """What a home takes on its disk, and what is left there, in bytes."""

    shards: int
    checkpoints: int
    tokenizer: int
    logs: int
    free: int


def machine() -> Machine:
    """This one."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    used = memory.total - memory.available
    host = socket.gethostname()
    return Machine(host, used, memory.total, swap.used, swap.total, pressure())


def pressure(stalls: Path = Path("/proc/pressure/memory")) -> Pressure | None:
    """How hard memory is to get: macOS's own level; on Linux by the time lost in waiting for it.

    There ``warning`` means that some processes waited for a tenth of the last ten seconds,
    ``critical`` that all did.

    Args:
        stalls: Linux's account of that time (Documentation/accounting/psi.rst).
    """
    if sys.platform == "darwin":
        level, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        name = b"kern.memorystatus_vm_pressure_level"
        libc = ctypes.CDLL(None)
        failed = libc.sysctlbyname(name, ctypes.byref(level), ctypes.byref(size), None, 0)
        return None if failed else MACOS_LEVELS.get(level.value)
    try:
        words = [line.split() for line in stalls.read_text("ascii").splitlines()]
        shares = {line[0]: float(line[1].removeprefix("avg10=")) / 100 for line in words}
    except (OSError, ValueError, IndexError):
        return None
    if shares.get("full", 0.0) >= STALLED:
        return "critical"
    return "warning" if shares.get("some", 0.0) >= STALLED else "normal"


def programs() -> list[Program]:
    """The processes of mlxchat on this machine, but for monitors, oldest first."""
    found = []
    for process in psutil.process_iter(["pid", "create_time", "cmdline", "memory_info"]):
        facts = process.info
        command = command_of(facts["cmdline"] or [])
        if command and command[0] != "monitor" and facts["memory_info"]:
            line, resident = " ".join(command), facts["memory_info"].rss
            found.append(Program(facts["pid"], facts["create_time"], line, resident))
    return sorted(found, key=lambda program: program.started)


def command_of(arguments: Sequence[str]) -> list[str]:
    """What is given to mlxchat in a command line, with a Python before it or not; else nothing."""
    rest = list(arguments)
    if rest and PurePath(rest[0]).name.lower().startswith("python"):
        rest = rest[1:]
        while rest and rest[0].startswith("-"):
            rest = rest[1:]
    return rest[1:] if rest and PurePath(rest[0]).name == "mlxchat" else []


def lives(process: Process) -> bool:
    """Whether that very process of this machine still runs."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.started) <= SAME_START
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def disk(home: Home) -> Disk:
    """What a home's parts take; nothing where it is not there."""
    existing = next(path for path in (home.root, *home.root.parents) if path.exists())
    return Disk(
        shards=_size(home.root.glob("base_data*")),
        checkpoints=_size(home.root.glob("*_checkpoints")),
        tokenizer=_size(home.root.glob("tokenizer*")),
        logs=_size([home.root / "logs"]),
        free=shutil.disk_usage(existing).free,
    )


def _size(folders: Iterator[Path] | Sequence[Path]) -> int:
    """Bytes of all files below; what vanishes meanwhile does not count."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    total += (Path(parent) / name).lstat().st_size
                except OSError:
                    continue
    return total
