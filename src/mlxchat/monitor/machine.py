"""The state of the machine: memory and its pressure, processes of mlxchat, disk space."""

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
STALLED = 0.1  # share of the last ten seconds beyond which waiting for memory is felt
MACOS_LEVELS: dict[int, "Pressure"] = {1: "normal", 2: "warning", 4: "critical"}

Pressure = Literal["normal", "warning", "critical"]


@dataclass(frozen=True)
class HostMemory:
    """Memory of the whole machine, in bytes."""

    host: str
    memory_used: int
    memory_total: int
    swap_used: int
    swap_total: int
    pressure: Pressure | None  # None if the system does not report it

    @property
    def full(self) -> bool:
        """Whether so little memory is left that the machine may begin to swap."""
        return self.memory_used > MACHINE_FULL * self.memory_total


@dataclass(frozen=True)
class MlxchatProcess:
    """A running process of mlxchat, found by its command line."""

    pid: int
    started: float  # seconds since the epoch
    command: str  # without the program's own name: "chat --model-tag d4"
    resident: int  # bytes in memory, including MLX's, but not a GPU's own memory


@dataclass(frozen=True)
class Disk:
    """The disk space that a home takes, and that is free, in bytes."""

    shards: int
    checkpoints: int
    tokenizer: int
    logs: int
    free: int


def host_memory() -> HostMemory:
    """Return the memory of this machine."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    used = memory.total - memory.available
    host = socket.gethostname()
    return HostMemory(host, used, memory.total, swap.used, swap.total, pressure())


def pressure(stalls: Path = Path("/proc/pressure/memory")) -> Pressure | None:
    """Return the memory pressure: macOS's own level, or on Linux from the time lost waiting.

    On Linux ``warning`` means that some processes waited for memory for a tenth of the last ten
    seconds, and ``critical`` that all did.

    Args:
        stalls: Linux's pressure file (Documentation/accounting/psi.rst).
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


def mlxchat_processes() -> list[MlxchatProcess]:
    """Return the mlxchat processes on this machine except monitors, oldest first."""
    found = []
    for process in psutil.process_iter(["pid", "create_time", "cmdline", "memory_info"]):
        facts = process.info
        command = command_of(facts["cmdline"] or [])
        if command and command[0] != "monitor" and facts["memory_info"]:
            line, resident = " ".join(command), facts["memory_info"].rss
            found.append(MlxchatProcess(facts["pid"], facts["create_time"], line, resident))
    return sorted(found, key=lambda program: program.started)


def command_of(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of mlxchat in a command line; none if it runs another program."""
    rest = list(arguments)
    if rest and PurePath(rest[0]).name.lower().startswith("python"):
        rest = rest[1:]
        while rest and rest[0].startswith("-"):
            rest = rest[2 if rest[0] == "-c" else 1 :]  # -c CODE FOLDER/mlxchat: a supervised run
    return rest[1:] if rest and PurePath(rest[0]).name == "mlxchat" else []


def lives(process: Process) -> bool:
    """Return whether this process of this machine is still running."""
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.started) <= SAME_START
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def disk(home: Home) -> Disk:
    """Return the disk space that the parts of a home take."""
    existing = next(path for path in (home.root, *home.root.parents) if path.exists())
    return Disk(
        shards=_size(home.root.glob("base_data*")),
        checkpoints=_size(home.root.glob("*_checkpoints")),
        tokenizer=_size(home.root.glob("tokenizer*")),
        logs=_size([home.root / "logs"]),
        free=shutil.disk_usage(existing).free,
    )


def _size(folders: Iterator[Path] | Sequence[Path]) -> int:
    """Return the bytes of all files below; files that vanish meanwhile do not count."""
    total = 0
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    total += (Path(parent) / name).lstat().st_size
                except OSError:
                    continue
    return total
