"""Has a tracker follow a run, in a process of its own, so that nothing it does can harm the run.

The run puts its steps into a bounded queue and goes on. A thread passes them to the process; if
that does not keep up, steps are left out. Its failure is told once. At the end the run waits for it
for a limited time.
"""

import queue
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from mlxchat.errors import reason_of
from mlxchat.json_text import parse_json
from mlxchat.system import own_command
from mlxchat.telemetry import tracker_child
from mlxchat.telemetry.events import Event, json_line
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.tracked import StepCollector, TrackedRun, TrackedStep
from mlxchat.telemetry.trackers import FINISH_SECONDS

_MOST_WAITING = 10_000  # steps in the queue
_SILENT_WAIT = 2.0  # seconds of waiting at the end that nobody needs to be told of
_POLL = 0.2  # seconds between looks at whether the user has asked to end
_LAST_WORDS = 3.0  # seconds to hear them in, once the process has ended


class Tracking:
    """Has a tracker follow a run within its context, which gives the function that takes events.

    Args:
        run: the run.
        meter: folds in each event before that function gets it.
        tell: shows a message to the user; called from other threads too.
        stop: returns whether the user has asked the program to end.
        finish_seconds: the longest wait at the end; a new wish to end cuts it short.
        most_waiting: steps that wait for the tracker, at most.
    """

    def __init__(
        self,
        run: TrackedRun,
        meter: Meter,
        tell: Callable[[str], None],
        stop: Callable[[], bool] = lambda: False,
        finish_seconds: float = FINISH_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._run, self._tell, self._stop = run, tell, stop
        self._finish_seconds = finish_seconds
        self._collector = StepCollector(run.step, meter)
        self._said = Path(run.folder) / "tracking.log"
        self._queue: queue.Queue[str | None] = queue.Queue(most_waiting)  # None: that is all
        self._late = False  # whether the tracker has not kept up
        self._failed = False
        self._killed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []

    def update(self, event: Event) -> None:
        """Take an event of the run; it never waits."""
        self._pass_on(self._collector.add(event))

    def _pass_on(self, step: TrackedStep | None) -> None:
        if step is None or self._failed:
            return
        try:
            self._queue.put_nowait(json_line(asdict(step)))
        except queue.Full:
            if not self._late:
                self._late = True
                self._tell(f"{self._run.tracker} cannot keep up: some steps are missing there.")

    def _fail(self, reason: str) -> None:
        """Tell the user once, and take no more."""
        if not self._failed:
            self._failed = True
            self._tell(
                f"{self._run.tracker} has failed: {reason}. The run continues without it, and "
                f"its own log is complete. The library's output: {self._said}"
            )

    def __enter__(self) -> Callable[[Event], None]:
        try:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    own_command(tracker_child.__name__),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,  # where Ctrl-C does not reach it
                )
        except OSError as error:
            self._fail(reason_of(error))
            return self.update
        self._queue.put(json_line(asdict(self._run)))
        for work in (self._send, self._listen):
            thread = threading.Thread(target=work, args=[self._process], daemon=True)
            thread.start()
            self._threads.append(thread)
        return self.update

    def _send(self, process: "subprocess.Popen[bytes]") -> None:
        """Pass the queue on to the process."""
        assert process.stdin
        with suppress(OSError, ValueError), process.stdin as stream:
            while (line := self._queue.get()) is not None:
                stream.write(f"{line}\n".encode())
                stream.flush()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        """Tell the user what the process says, and if it ends before the run does."""
        assert process.stdout
        with process.stdout as stream:
            for line in stream:
                with suppress(ValueError):  # it was killed while it wrote this
                    self._answered(parse_json(line))
        if process.wait() and not self._killed:
            self._fail(f"its process has ended ({process.returncode})")

    def _answered(self, answer: object) -> None:
        match answer:
            case {tracker_child.FAILED: str(reason)}:
                self._fail(reason)
            case {tracker_child.WHERE: str(where)}:
                self._tell(where)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        try:
            self._pass_on(self._collector.rest())
            how = tracker_child.FAILED if isinstance(error, Exception) else "done"
            self._put_last(json_line({tracker_child.ENDED: how}))
            self._put_last(None)
            self._wait(self._process)
        finally:
            if self._process.poll() is None:
                self._killed = True
                self._process.kill()
            for thread in self._threads:
                thread.join(_LAST_WORDS)

    def _put_last(self, line: str | None) -> None:
        """Put a line at the end of the queue, in the place of the oldest if it is full."""
        while True:
            with suppress(queue.Full):
                self._queue.put_nowait(line)
                return
            with suppress(queue.Empty):
                self._queue.get_nowait()

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the tracker has sent what is left, as long as it may take."""
        name, began, asked_before = self._run.tracker, time.monotonic(), self._stop()

        def has_ended_by(seconds: float) -> bool:
            """Wait so long since the beginning, unless the user asks to end meanwhile."""
            while (left := began + seconds - time.monotonic()) > 0 and self._stop() == asked_before:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, _POLL))
                    return True
            return process.poll() is not None

        silent = min(_SILENT_WAIT, self._finish_seconds)
        if has_ended_by(silent):
            return
        if self._stop() == asked_before:
            rest = self._finish_seconds - silent
            self._tell(
                f"Waiting for {name} to send the rest, at most {rest:.0f} s. Ctrl-C ends the wait."
            )
        if not has_ended_by(self._finish_seconds):
            self._tell(f"{name} did not finish; some of the run may be missing there.")
