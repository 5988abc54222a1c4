"""The operating system: memory, pressure, identity, versions, processes, keeping a Mac awake.

Everything that differs on a Mac goes through these functions, which tests replace.
"""

import ctypes
import os
import platform
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil

Pressure = Literal["normal", "warning", "critical"]

MACOS_LEVELS: dict[int, Pressure] = {1: "normal", 2: "warning", 4: "critical"}
STALLED = 0.1  # share of the last ten seconds beyond which waiting for memory is felt
IDENTITY_SECONDS = 1  # the longest wait for a Mac's identity
LONGEST_DISTRIBUTION = 60  # characters of the name of a Linux distribution

# `-m` and `-c` look for modules in the working directory first; the option -P, which prevents that,
# is not in Python 3.10. The folder of the package comes last, in case it is found no other way.
_START = """
import sys
if sys.path[0] == "":
    del sys.path[0]
sys.path.append(sys.argv.pop(1).rpartition("/")[0])
import runpy
runpy.run_module("{}", run_name="__main__", alter_sys=True)
"""


def on_mac() -> bool:
    """Return whether this is a Mac."""
    return sys.platform == "darwin"


def sysctl(name: str) -> int | None:
    """Return a 32-bit number that a Mac's kernel keeps; None if it keeps none of that name."""
    if not on_mac():
        return None
    number, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(name.encode(), ctypes.byref(number), ctypes.byref(size), None, 0)
    return None if failed else number.value


def free_memory() -> int:
    """Return the bytes that programs can take without driving out what others are using.

    On a Mac it is the kernel's own percentage, which `memory_pressure` prints: it counts files in
    memory and what can be compressed. Pages that hold nothing are few on any Mac, and say little.
    """
    virtual = psutil.virtual_memory()
    percent = sysctl("kern.memorystatus_level")
    if percent is None or not 0 < percent <= 100:
        return int(virtual.available)
    return int(virtual.total) * percent // 100


def pressure(stalls: Path = Path("/proc/pressure/memory")) -> Pressure | None:
    """Return the memory pressure: macOS's own level, or on Linux from the time lost waiting.

    On Linux ``warning`` means that some processes waited for memory for a tenth of the last ten
    seconds, and ``critical`` that all did.

    Args:
        stalls: Linux's pressure file (Documentation/accounting/psi.rst).
    """
    if on_mac():
        return MACOS_LEVELS.get(sysctl("kern.memorystatus_vm_pressure_level") or 0)
    try:
        words = [line.split() for line in stalls.read_text("ascii").splitlines()]
        shares = {line[0]: float(line[1].removeprefix("avg10=")) / 100 for line in words}
    except (OSError, ValueError, IndexError):
        return None
    if shares.get("full", 0.0) >= STALLED:
        return "critical"
    return "warning" if shares.get("some", 0.0) >= STALLED else "normal"


def identity() -> str:
    """Return what tells this machine from others that share a folder with it.

    It is the hostname, but on a Mac the hardware's own number: a Mac changes its name with the
    network that it is in.
    """
    if on_mac():
        number = (ctypes.c_ubyte * 16)()
        wait = (ctypes.c_long * 2)(IDENTITY_SECONDS, 0)  # a timespec
        if ctypes.CDLL(None).gethostuuid(number, wait) == 0:
            return str(uuid.UUID(bytes=bytes(number)))
    return socket.gethostname()


def python_version() -> str:
    """Return the version of Python, such as ``3.12.3``."""
    return platform.python_version()


def system_version() -> str:
    """Return the operating system's name and version, and the processor's architecture.

    It names neither the machine nor its user. Of Linux's kernel it has the numbers only, since
    whoever builds one may put any words behind them.
    """
    if on_mac():
        names = [f"macOS {platform.mac_ver()[0]}".strip()]
    else:
        kernel = re.match(r"[0-9]+(\.[0-9]+)*", platform.release())
        names = [_distribution(), f"{platform.system()} {kernel[0] if kernel else ''}".strip()]
    return ", ".join(filter(None, [*names, platform.machine()]))


def _distribution() -> str:
    """Return the name and the version of a Linux distribution; empty if nothing says."""
    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return ""
    text = f"{told.get('NAME', '')} {told.get('VERSION_ID', '')}"
    return " ".join("".join(filter(str.isprintable, text)).split())[:LONGEST_DISTRIBUTION]


def own_command(module: str, *arguments: str) -> list[str]:
    """Return a command line that runs a module, as ``python -m`` does, with arguments.

    It imports what this process imports, whatever Python files are in the working directory.
    """
    package = Path(__file__).parent
    return [sys.executable, "-c", _START.format(module), str(package), *arguments]


@contextmanager
def kept_awake() -> Iterator[bool]:
    """Keep a Mac from sleeping within the context; yield whether that is done.

    ``caffeinate`` holds off the sleep of an idle system (-i) and, on mains, all but that of a
    closed lid (-s). The display may sleep: while it is on, it can set off the GPU's watchdog.
    caffeinate ends with this process (-w), however that ends.
    """
    process = _caffeinate() if on_mac() else None
    try:
        yield process is not None
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def _caffeinate() -> "subprocess.Popen[bytes] | None":
    """Start caffeinate, out of reach of the terminal's Ctrl-C; None if it is missing."""
    try:
        return subprocess.Popen(
            ["caffeinate", "-i", "-s", "-w", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
