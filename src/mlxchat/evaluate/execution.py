"""Running programs that a model wrote, in a process of their own and within limits.

The limits contain accidents: an endless loop, too much memory, a file left behind. They are not a
sandbox: a program can read what you can read, use the network, and escape its limits on purpose.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

TIME_LIMIT = 5.0  # seconds, as in nanochat
MEMORY_LIMIT = 256 * 2**20  # bytes, as in nanochat
REACHED_THE_END = 42  # exit code; 0 could also be an early exit()

# Arguments: the program's file, bytes, seconds. macOS cannot limit memory: only time counts there.
_LIMITED = f"""
import resource, runpy, sys
path, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, memory)]
if sys.platform != "darwin":
    limits.append((resource.RLIMIT_AS, memory))
for limit, value in limits:
    resource.setrlimit(limit, (value, value))
runpy.run_path(path, run_name="__main__")
raise SystemExit({REACHED_THE_END})
"""


def runs_through(program: str, seconds: float = TIME_LIMIT, memory: int = MEMORY_LIMIT) -> bool:
    """Return whether a Python program reaches its end without an exception or an exit.

    It gets its own interpreter, session and temporary folder, no standard input or output, and no
    environment variables. Afterwards its whole process group is killed.

    Args:
        program: the source code.
        seconds: the limit on wall-clock time.
        memory: the limit, in bytes, on its address space and on each file it writes; on macOS only
            on files.
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
