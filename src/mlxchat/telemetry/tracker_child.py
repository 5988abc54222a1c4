"""The process of a tracker: ``python -m mlxchat.telemetry.tracker_child``.

It reads lines of JSON from standard input: a `TrackedRun`, a `TrackedStep` for each step, and last
whether the run has failed. On standard output it says where the run can be looked at, or why the
tracker failed. What the library prints goes to standard error.

What is sent is written down before, in a file beside the log of the run: a run that is resumed
computes some steps again, and they are not sent again.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from mlxchat.disk import read_regular, replacing
from mlxchat.errors import LockedError, reason_of
from mlxchat.json_text import as_type, parse_json
from mlxchat.locks import Lock
from mlxchat.telemetry.tracked import TrackedRun, TrackedStep, TrackerName
from mlxchat.telemetry.trackers import FINISH_SECONDS, begin_tracking

WHERE, FAILED, ENDED = "where", "failed", "ended"  # the kinds of answers, and the last line's key

_SAMPLES = "samples"
_NICE = 10  # on CPUs training needs the cores
_POLL = 0.2  # seconds between looks
_MOST_REMEMBERED = 2**16  # bytes
_MOST_REASON = 300  # characters
_NO_REASON = "<no message>"  # what wandb says of its own errors where it knows nothing

Say = Callable[[str, str], None]  # gets the kind of an answer, and its text


@dataclass
class Remembered:
    """The record of what a tracker has been told of a run.

    Attributes:
        name: the run's name; that of a copy differs.
        key: what tells the run from all others.
        sent: the last step of which a value was sent, by the value's name.
    """

    name: str
    key: str = field(default_factory=lambda: secrets.token_hex(4))
    sent: dict[str, int] = field(default_factory=dict)

    def unsent(self, step: TrackedStep) -> TrackedStep:
        """Return a step without what was sent of it, or of a later one."""
        new = {n: value for n, value in step.values.items() if self.sent.get(n, -1) < step.step}
        samples = step.samples if self.sent.get(_SAMPLES, -1) < step.step else []
        return replace(step, values=new, samples=samples)

    def add(self, step: TrackedStep) -> None:
        """Count all of a step as sent."""
        self.sent |= dict.fromkeys(step.values, step.step)
        if step.samples:
            self.sent[_SAMPLES] = step.step


_RUN, _STEP = TypeAdapter(TrackedRun), TypeAdapter(TrackedStep)
_ALL_REMEMBERED = TypeAdapter(dict[TrackerName, Remembered])


def follow_run_by_lines(lines: Iterable[bytes], say: Say) -> None:
    """Have a tracker follow the run that the lines tell of, to their end.

    Args:
        lines: as the module describes them. If the last one is missing, the run was killed.
        say: gets the answers.

    Raises:
        Exception: whatever the tracker raises.
    """
    received = iter(lines)
    run = as_type(parse_json(next(received)), _RUN)
    with _only_one(run):
        path = Path(run.folder) / "tracking.json"
        everything = _read(path) if run.step else {}
        memory = everything.get(run.tracker)
        known = memory is not None and memory.name == run.name
        if memory is None or not known:
            memory = everything[run.tracker] = Remembered(run.name)
        _write(path, everything)
        tracker = begin_tracking(run, memory.key, known)
        say(WHERE, tracker.where())
        failed = True
        for line in received:
            told = parse_json(line)
            if isinstance(told, dict) and ENDED in told:
                failed = told[ENDED] == FAILED
                break
            step = memory.unsent(as_type(told, _STEP))
            if step.values or step.samples:
                memory.add(step)
                _write(path, everything)
                tracker.log(step)
        tracker.finish(failed)


def _only_one(run: TrackedRun) -> Lock:
    """Wait until no other process sends the same run, such as that of a run that was just killed.

    Raises:
        LockedError: another one still does.
    """
    until = time.monotonic() + 2 * FINISH_SECONDS

    def wait() -> None:
        if time.monotonic() > until:
            raise LockedError("another process is still sending this run")
        time.sleep(_POLL)

    return Lock.take_after(Path(run.folder) / ".tracking", wait)


def _read(path: Path) -> dict[TrackerName, Remembered]:
    """Return what is remembered; nothing if the file is missing or damaged."""
    try:
        return as_type(parse_json(read_regular(path, _MOST_REMEMBERED)), _ALL_REMEMBERED)
    except (OSError, ValueError):
        return {}


def _write(path: Path, everything: dict[TrackerName, Remembered]) -> None:
    with replacing(path) as partial:
        text = json.dumps({name: asdict(memory) for name, memory in everything.items()})
        partial.write_text(text, encoding="utf-8")


def _end_after(parent: int) -> None:
    """End this process `FINISH_SECONDS` after the one that started it, whatever hangs in here."""
    while os.getppid() == parent:
        time.sleep(_POLL)
    time.sleep(FINISH_SECONDS)
    os._exit(os.EX_SOFTWARE)


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the library prints is no answer
    os.nice(_NICE)

    def say(kind: str, text: str) -> None:
        answers.write(f"{json.dumps({kind: text})}\n")
        answers.flush()

    threading.Thread(target=_end_after, args=[os.getppid()], daemon=True).start()
    try:
        follow_run_by_lines(sys.stdin.buffer, say)
    except Exception as error:  # noqa: BLE001  (it may be any)
        reason = " ".join(reason_of(error).split())[:_MOST_REASON]
        say(FAILED, type(error).__name__ if reason == _NO_REASON else reason)
        sys.exit(1)


if __name__ == "__main__":
    _main()
