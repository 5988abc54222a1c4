"""Runs programs that a model wrote, each in its own process and within limits.

The limits protect against accidents, such as an endless loop, excessive memory or leftover files.
They are not a sandbox: a program can read what you can read, use the network, and escape its limits
on purpose.

A program has succeeded if its process afterwards sends back a token that is generated for each
program. Until then the token is only in a pipe, and not in the program's source, arguments,
environment or objects. An exit code would prove nothing, because a program can exit with any code.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TIME_LIMIT = 5.0  # seconds, as in nanochat
MEMORY_LIMIT = 256 * 2**20  # bytes, as in nanochat
TOKEN_LENGTH = 32

# Arguments: the program's file, bytes, seconds, and the ends of the pipes for the token and for
# sending it back. macOS cannot limit memory: only time counts there. What is needed after the
# program is taken before it, since a program can replace functions; and a process that it forked
# sends nothing. Threads and exit handlers of the program are not waited for.
_LIMITED = f"""
import os, resource, runpy, sys

def run(path, memory, seconds, token, back):
    read, write, leave, own_id = os.read, os.write, os._exit, os.getpid
    limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, memory)]
    if sys.platform != "darwin":
        limits.append((resource.RLIMIT_AS, memory))
    for limit, value in limits:
        resource.setrlimit(limit, (value, value))
    process = own_id()
    runpy.run_path(path, run_name="__main__")
    if own_id() == process:
        write(back, read(token, {TOKEN_LENGTH}))
    leave(0)

path, *numbers = sys.argv[1:]
del sys.argv[1:]
run(path, *map(int, numbers))
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
    token = secrets.token_bytes(TOKEN_LENGTH)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        _pipe() as (token_out, token_in),
        _pipe() as (answer_out, answer_in),
    ):
        os.write(token_in, token)
        path = Path(folder) / "program.py"
        path.write_text(program, "utf-8", errors="replace")
        numbers = [memory, int(seconds) + 1, token_out, answer_in]
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED, str(path), *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            pass_fds=(token_out, answer_in),
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(answer_out, False)
        try:
            return os.read(answer_out, TOKEN_LENGTH) == token
        except BlockingIOError:  # it ended without an answer
            return False


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Open a pipe; yields the ends to read from and to write to."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)
