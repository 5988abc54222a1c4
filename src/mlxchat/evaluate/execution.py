"""Programs that a model wrote, run in a process of their own, within limits.

This keeps accidents in: an endless loop, too much memory, a file left behind. It is no sandbox: a
program can read what you can read, use the network, and outlive its limits if it is written to.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS = 5.0  # nanochat's
MEMORY = 256 * 2**20  # bytes; nanochat's
REACHED_THE_END = 42  # exit code; 0 could also be an early exit()

# Arguments: the program's file, bytes, seconds. macOS takes no limit on memory: only time counts.
_LIMITED = f"""
import resource, runpy, sys
path, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, memory)]
if sys.platform != "darwin":
    limits.append((resource.RLIMIT_AS, memory))
for limit, most in limits:
    resource.setrlimit(limit, (most, most))
runpy.run_path(path, run_name="__main__")
raise SystemExit({REACHED_THE_END})
"""


def runs_through(program: str, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a Python program gets to its end without an exception or an exit.

    It has an interpreter, a session and a temporary folder of its own, no standard input or output
    and no environment variables; when it is over, all that is left of its process group is killed.

    Args:
        program: source code.
        seconds: of wall-clock time.
        memory: bytes of address space, and of a file that it writes; on a Mac of the file only.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, "utf-8", errors="replace")
        limits = [str(memory), str(int(seconds) + 1)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED, str(path), *limits],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            return process.wait(seconds) == REACHED_THE_END
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
