"""What `mlxchat train --supervise` does: it watches over the process that trains.

A process that crashes (killed for memory, ended by the GPU's watchdog, a fault in the backend) is
started again and goes on from its last checkpoint. One that ends by itself is not, nor one that was
asked to end. Where another process has taken the run's lock after a crash, or that of the folder
that it streams into, it is waited for.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from mlxchat.checkpoint import store
from mlxchat.cli.session import SHOW_CURSOR, ending_signals
from mlxchat.errors import BackendError, MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen
from mlxchat.ui.text import amount

MOST_CRASHES = 5  # one after another, without a new checkpoint between them
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; each is twice the one before
POLL_SECONDS = 0.1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # asked for by somebody: no crash

Tell = Callable[[str], None]
Command = Callable[[bool], list[str]]  # by whether to begin anew


def train(arguments: list[str], tag: str, fresh: bool, json: bool) -> int:
    """Train in another process, again and again until it is done; its exit code.

    Args:
        arguments: of the program, without ``--supervise`` and ``--fresh``.
        tag: name of the run.
        fresh: set an earlier run of that name aside.
        json: tell in JSON.
    """

    def command(anew: bool) -> list[str]:
        return [sys.executable, "-m", "mlxchat", *arguments, *(["--fresh"] if anew else [])]

    def tell(text: str) -> None:
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), SHOW_CURSOR)  # a crashed process leaves it hidden
        with Screen(json) as screen:
            screen.show(Noted(time.time(), text))

    return supervise(command, Home.from_environment().run(tag), fresh, tell)


def supervise(command: Command, run: Path, fresh: bool, tell: Tell) -> int:
    """Start a command, and start it again for as long as it crashes and gets on meanwhile.

    Args:
        command: makes the command line.
        run: the folder that its checkpoints are in.
        fresh: whether it is to begin anew, which it does until it has saved a step of its own.
        tell: is told what is done.

    Returns:
        The exit code of the command; 128 and the number of a signal that ended it.

    Raises:
        MlxchatError: it crashed too often without a new checkpoint.
    """
    earlier, newest, crashes, pause = _identity(run), _newest(run), 0, FIRST_PAUSE
    with _Forwarding() as forwarding:
        while True:
            anew = fresh and _identity(run) == earlier
            code = forwarding.run(command(anew))
            locked = code == os.EX_TEMPFAIL and crashes > 0
            if forwarding.asked_to_end or not (locked or _crashed(code)):
                return code if code >= 0 else 128 - code
            if locked:
                pause = min(2 * pause, LONGEST_PAUSE)
                tell(
                    f"Another process holds what the run {run.name} needs. It is tried again in "
                    f"{amount(pause, 'seconds')}."
                )
            else:
                before, newest = newest, _newest(run)
                crashes = crashes + 1 if newest == before else 1
                pause = min(FIRST_PAUSE * 2 ** (crashes - 1), LONGEST_PAUSE)
                anew = fresh and _identity(run) == earlier
                since = "from the beginning"
                if newest and not anew:
                    since = f"from step {newest[1]:,}"
                if crashes == MOST_CRASHES:
                    raise _too_many(run, since, code)
                tell(
                    f"The process was ended by {_reason(code)}. It is started again in "
                    f"{amount(pause, 'seconds')}, {since}; crash {crashes} of {MOST_CRASHES} at "
                    "most without a new checkpoint."
                )
            if not forwarding.pause(pause):
                return 128 + forwarding.received[0]


def _too_many(run: Path, since: str, code: int) -> MlxchatError:
    return BackendError(
        f"The run {run.name} crashed {MOST_CRASHES} times {since} on, the last time by "
        f"{_reason(code)}; no step was saved between.",
        "See above what it said. Save more often with --save-every, or take less memory: "
        "--device-batch-size. The same command goes on with it.",
    )


def _crashed(code: int) -> bool:
    return code == os.EX_SOFTWARE or (code < 0 and -code not in ENDING)


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else "an error of the backend"


def _identity(run: Path) -> int | None:
    """Tells a run's folder from one of the same name that was set aside."""
    return run.stat().st_ino if run.exists() else None


def _newest(run: Path) -> tuple[int | None, int] | None:
    """The newest saved step, and of which folder."""
    saved = store.steps(run) if run.exists() else []
    return (_identity(run), saved[-1]) if saved else None


class _Forwarding:
    """Within its context, `ending_signals` go to the process that runs, each once.

    That process is in a session of its own, out of a terminal's reach: it would get a Ctrl-C twice
    otherwise, and take the second one for a request to end at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._pending: deque[int] = deque()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def asked_to_end(self) -> bool:
        return bool(self.received)

    def run(self, command: list[str]) -> int:
        """Run a command to its end; its return code."""
        with subprocess.Popen(command, start_new_session=True) as self._process:
            self._forward()
            code = self._process.wait()
        self._process = None
        return code

    def pause(self, seconds: float) -> bool:
        """Wait; False as soon as a signal asks to end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.asked_to_end:
            time.sleep(POLL_SECONDS)
        return not self.asked_to_end

    def __enter__(self) -> "_Forwarding":
        handlers = {**dict.fromkeys(ending_signals(), self._end), signal.SIGTSTP: self._suspend}
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
        with suppress(IndexError):  # a signal can come at any point of this
            while self._process is not None:
                self._process.send_signal(self._pending.popleft())

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: both stop, and go on together."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
