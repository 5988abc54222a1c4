"""`train --supervise`: training in a child process that is restarted whenever it crashes.

A process that crashes (out of memory, the GPU's watchdog, an error of the backend) is restarted and
resumes from its last checkpoint. A process that ends by itself, or was asked to end, is not. If,
after a crash, another process holds the lock of the run or of the folder it streams into, the
supervisor waits and retries.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from mlxchat.checkpoint import store
from mlxchat.cli.session import SHOW_CURSOR, end_signals
from mlxchat.errors import BackendError, MlxchatError
from mlxchat.system import on_mac, own_command
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen
from mlxchat.ui.text import amount

MAX_CRASHES = 5  # in a row, without a new checkpoint in between
FIRST_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds; each pause is twice the one before
SIGNAL_POLL_SECONDS = 0.1
NO_CRASH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # somebody asked it to end
MAYBE_WATCHDOG = (
    ", on a Mac often by the GPU's watchdog, which is inactive while the display sleeps"
)

Tell = Callable[[str], None]
CommandLine = Callable[[bool], list[str]]  # makes the command line, given whether to start fresh


def train_supervised(arguments: list[str], run: Path, fresh: bool, json: bool) -> int:
    """Train in a child process, restarting it until it is done, and return its exit code.

    Args:
        arguments: the arguments of the child's program.
        run: the folder of the run's checkpoints.
        fresh: whether to start from scratch, renaming an earlier run of that name.
        json: whether to print JSON.
    """

    def command(from_scratch: bool) -> list[str]:
        return own_command("mlxchat", *arguments, *(["--fresh"] * from_scratch))

    def tell(text: str) -> None:
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), SHOW_CURSOR)  # a crashed process leaves the cursor hidden
        with Screen(json) as screen:
            screen.show(Noted(time.time(), text))

    return supervise(command, run, fresh, tell)


def supervise(command: CommandLine, run: Path, fresh: bool, tell: Tell) -> int:
    """Run a command, and restart it when it crashes, as long as it makes progress in between.

    Args:
        command: makes the command line.
        run: the folder of its checkpoints.
        fresh: whether to start from scratch; restarts do so too until it has saved a step.
        tell: shows a message.

    Returns:
        The exit code of the command, or 128 plus the number of the signal that ended it.

    Raises:
        BackendError: it crashed `MAX_CRASHES` times without a new checkpoint.
    """
    earlier, newest, crashes, pause = _identity(run), _newest(run), 0, FIRST_PAUSE
    with Forwarding() as forwarding:
        while True:
            from_scratch = fresh and _identity(run) == earlier
            code = forwarding.run(command(from_scratch))
            locked = code == os.EX_TEMPFAIL and crashes > 0
            if forwarding.asked_to_end or not (locked or _crashed(code)):
                return code if code >= 0 else 128 - code
            if locked:
                pause = min(2 * pause, MAX_PAUSE)
                tell(
                    f"Another process is using the run {run.name} or its data. Retrying in "
                    f"{amount(pause, 'seconds')}."
                )
            else:
                before, newest = newest, _newest(run)
                crashes = crashes + 1 if newest == before else 1
                pause = min(FIRST_PAUSE * 2 ** (crashes - 1), MAX_PAUSE)
                from_scratch = fresh and _identity(run) == earlier
                since = f"step {newest[1]:,}" if newest and not from_scratch else "the beginning"
                if crashes == MAX_CRASHES:
                    raise _too_many(run, since, code)
                tell(
                    f"The process was ended by {_reason(code)}. Restarting from {since} in "
                    f"{amount(pause, 'seconds')} (crash {crashes} of at most {MAX_CRASHES} without "
                    "a new checkpoint)."
                )
            if not forwarding.pause(pause):
                return 128 + forwarding.received[0]


def _too_many(run: Path, since: str, code: int) -> MlxchatError:
    return BackendError(
        f"The run {run.name} crashed {MAX_CRASHES} times after {since} without saving a "
        f"checkpoint, most recently because of {_reason(code)}.",
        "Its error messages are above. Save more often with --save-every, or use less memory with "
        "a smaller --device-batch-size. To resume, repeat the same command.",
    )


def _crashed(code: int) -> bool:
    return code == os.EX_SOFTWARE or (code < 0 and -code not in NO_CRASH)


def _reason(code: int) -> str:
    if code >= 0:
        return "a backend error"
    name = signal.Signals(-code).name
    return f"{name}{MAYBE_WATCHDOG}" if on_mac() and -code == signal.SIGABRT else name


def _identity(run: Path) -> int | None:
    """Return a number that tells a run's folder from a later one of the same name."""
    return run.stat().st_ino if run.exists() else None


def _newest(run: Path) -> tuple[int | None, int] | None:
    """Return the newest checkpoint, with the identity of its folder."""
    saved = store.steps(run) if run.exists() else []
    return (_identity(run), saved[-1]) if saved else None


class Forwarding:
    """Forwards `end_signals` to the running child process within its context, each once.

    The child has a session of its own, where the terminal does not reach it. Otherwise it would get
    each Ctrl-C twice, and take the second one for a request to end at once.

    Args:
        receiver: returns the number of the process that gets them in place of the child; None as
            long as there is none.
    """

    def __init__(self, receiver: Callable[[], int | None] = lambda: None) -> None:
        self._receiver = receiver
        self.received: list[int] = []
        self._pending: deque[int] = deque()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal has come."""
        return bool(self.received)

    def run(self, command: list[str], variables: Mapping[str, str] = os.environ) -> int:
        """Run a command to its end and return its exit code (negative: a signal).

        Args:
            command: the command line.
            variables: its environment.
        """
        with subprocess.Popen(command, env=variables, start_new_session=True) as self._process:
            self._forward()
            code = self._process.wait()
        self._process = None
        return code

    def kill(self) -> None:
        """End the process at once, if it runs."""
        if self._process is not None:
            self._process.kill()

    def pause(self, seconds: float) -> bool:
        """Wait, and return True; return False as soon as a signal asks to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.asked_to_end:
            time.sleep(SIGNAL_POLL_SECONDS)
        return not self.asked_to_end

    def __enter__(self) -> "Forwarding":
        handlers = {**dict.fromkeys(end_signals(), self._end), signal.SIGTSTP: self._suspend}
        self._handlers = {number: signal.signal(number, new) for number, new in handlers.items()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._pending.append(number)
        self._forward()

    def _forward(self) -> None:
        with suppress(IndexError):  # a signal can arrive anywhere in here
            while self._process is not None:
                number = self._pending.popleft()
                if receiver := self._receiver():
                    with suppress(ProcessLookupError):
                        os.kill(receiver, number)
                else:
                    self._process.send_signal(number)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Stop this process and all that it has started on Ctrl-Z, and continue all afterwards.

        They are the ranks of a run, too: those that go on would find that the others hang.
        """
        started = psutil.Process().children(recursive=True)
        _for_each(started, psutil.Process.suspend)
        os.kill(os.getpid(), signal.SIGSTOP)
        _for_each(started, psutil.Process.resume)


def _for_each(processes: Iterable[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            act(process)
