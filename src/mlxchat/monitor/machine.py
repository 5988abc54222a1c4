"""The state of the machine: memory and its pressure, processes of mlxchat, disk space."""

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import psutil

from mlxchat.disk import free_space
from mlxchat.home import Home
from mlxchat.system import Pressure, on_mac, pressure
from mlxchat.telemetry.events import machine_full
from mlxchat.telemetry.status import Process

SAME_START = 2.0  # seconds by which two readings of a process's start may differ


@dataclass(frozen=True)
class HostMemory:
    """Memory of the whole machine, in bytes."""

    host: str
    memory_used: int
    memory_total: int
    swap_used: int
    swap_total: int
    pressure: Pressure | None  # None if the system does not report it
    mac: bool = False

    @property
    def full(self) -> bool:
        """Whether so little memory is left that the machine may begin to swap."""
        felt = self.pressure if self.mac else None
        return machine_full(self.memory_used, self.memory_total, felt)


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
    return HostMemory(
        socket.gethostname(),
        used,
        memory.total,
        swap.used,
        swap.total,
        pressure(),
        on_mac(),
    )


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
    """Return whether this process of this machine is still running.

    Linux derives the start of a process from that of the machine, which moves when somebody sets
    the clock. The time between the two does not.
    """
    try:
        booted, found = psutil.boot_time(), psutil.Process(process.pid)
        later = found.create_time() - process.started
        moved = 0.0 if process.booted is None else booted - process.booted
        same = min(abs(later), abs(later - moved)) <= SAME_START
        return bool(same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True


def disk(home: Home) -> Disk:
    """Return the disk space that the parts of a home take."""
    return Disk(
        shards=_size(home.root.glob("base_data*")),
        checkpoints=_size(home.root.glob("*_checkpoints")),
        tokenizer=_size(home.root.glob("tokenizer*")),
        logs=_size([home.root / "logs"]),
        free=free_space(home.root),
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
