"""Has a tracker follow a run, in a process of its own, so that nothing it does can harm the run.

The run puts its steps into a bounded queue and goes on. A thread passes them to the process; if
that does not keep up, steps are left out. Its failure is told once. At the end the run waits for it
for a limited time.
"""

import math
import queue
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mlxchat.errors import reason_of
from mlxchat.json_text import parse_json
from mlxchat.system import own_command
from mlxchat.telemetry import tracker_child
from mlxchat.telemetry.events import (
    CoreMeasured,
    Evaluated,
    Event,
    Judged,
    Rewarded,
    Sampled,
    Stepped,
    json_line,
)
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.trackers import (
    FINISH_SECONDS,
    TrackedRun,
    TrackedSample,
    TrackedStep,
)

_MOST_WAITING = 10_000  # steps in the queue
_SILENT_WAIT = 2.0  # seconds of waiting at the end that nobody needs to be told of
_LAST_WORDS = 3.0  # seconds to hear them in, once the process has ended
_GIGABYTE = 1e9


def tracked_values(event: Event, meter: Meter) -> dict[str, float]:
    """Return the numbers that a tracker gets of an event, by name, those that are finite.

    Args:
        event: the event.
        meter: has folded it in.
    """
    values: dict[str, float | None] = {}
    match event:
        case Stepped():
            values = {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/gradient_norm": event.gradient_norm,
                "train/tokens_per_second": meter.tokens_per_second,
                "train/mfu": meter.mfu,
                "train/peak_memory_gb": event.memory.peak / _GIGABYTE,
            }
        case Rewarded():
            values = {
                "reward/mean": event.reward,
                "reward/right": event.right,
                "reward/all_right": event.all_right,
                "reward/all_wrong": event.all_wrong,
            }
        case Evaluated():
            values = {
                "validation/bits_per_byte": event.bits_per_byte,
                "validation/loss": event.loss,
            }
        case Judged():
            values = {
                "validation/reward": event.reward,
                "validation/pass_1": event.pass_1,
                f"validation/pass_{event.samples}": event.pass_k,
            }
        case CoreMeasured():
            values = {"core/core": event.core, "core/standard_error": event.error}
    return {name: v for name, v in values.items() if v is not None and math.isfinite(v)}


class Tracking:
    """Has a tracker follow a run within its context, which gives the function that takes events.

    Args:
        run: the run.
        meter: folds in each event before that function gets it.
        tell: shows a message to the user; called from other threads too.
        finish_seconds: the longest wait at the end.
        most_waiting: steps that wait for the tracker, at most.
    """

    def __init__(
        self,
        run: TrackedRun,
        meter: Meter,
        tell: Callable[[str], None],
        finish_seconds: float = FINISH_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._run, self._meter, self._tell = run, meter, tell
        self._finish_seconds = finish_seconds
        self._said = Path(run.folder) / "tracking.log"
        self._queue: queue.Queue[str | None] = queue.Queue(most_waiting)  # None: that is all
        self._step = TrackedStep(run.step, {}, [])  # not complete before a later one begins
        self._late = False  # whether the tracker has not kept up
        self._failed = False
        self._killed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []

    def update(self, event: Event) -> None:
        """Take an event of the run; it never waits."""
        number = getattr(event, "step", None)
        values = tracked_values(event, self._meter)
        if number is None or not (values or isinstance(event, Sampled)):
            return
        if number > self._step.step:
            self._pass_on()
            self._step = TrackedStep(number, {}, [])
        self._step.values.update(values)
        if isinstance(event, Sampled):
            self._step.samples.append(TrackedSample(event.prompt, event.text, event.reward))

    def _pass_on(self) -> None:
        step = self._step
        if self._failed or not (step.values or step.samples):
            return
        try:
            self._queue.put_nowait(json_line(asdict(step)))
        except queue.Full:
            if not self._late:
                self._late = True
                self._tell(f"{self._run.tracker} does not keep up: some steps are missing there.")

    def _fail(self, reason: str) -> None:
        """Tell the user once, and take no more."""
        if not self._failed:
            self._failed = True
            self._tell(
                f"{self._run.tracker} has failed: {reason}. The run goes on without it, and its "
                f"own log has everything. What the library said: {self._said}"
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
            self._pass_on()
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
        name, rest = self._run.tracker, max(0.0, self._finish_seconds - _SILENT_WAIT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(_SILENT_WAIT, self._finish_seconds))
            return
        self._tell(f"Waiting for {name} to send the rest, at most {rest:.0f} s.")
        try:
            process.wait(rest)
        except subprocess.TimeoutExpired:
            self._tell(f"{name} has not ended in time; some of the run may be missing there.")


def tracked_settings(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as trackers show them, one level deep and without what is not given."""
    flat: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                inner = tracked_settings(value)
                flat |= {f"{name}.{within}": each for within, each in inner.items()}
            elif value is not None:
                flat[name] = value
    return flat
