"""The log of a run: if it cannot be written, the run saves its work before it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mlxchat.disk import open_regular, replacing, sync
from mlxchat.errors import DiskError, reason_of
from mlxchat.json_text import parse_json
from mlxchat.telemetry.events import (
    Drawing,
    Evaluating,
    Event,
    Progressed,
    Saved,
    event_from_json,
    event_to_json,
)

MOST_LINE = 2**20  # bytes of a line; those with a sample or a note have some thousand

_MAKE_ROOM = "Free space on that disk, then repeat the command to resume."


class RunLog:
    """Writes events within its context, and holds back a failure until `check` raises it.

    Args:
        path: the file.
        step: of the last checkpoint, or 0. Entries about later steps are removed from the log.

    Raises:
        DiskError: the file cannot be opened or rewritten; it is left unchanged.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path, self._saved = path, step
        try:
            self._lines = JsonLines.resume(path, step)
        except OSError as error:
            raise DiskError(
                f"The log {path} cannot be written: {reason_of(error)}.",
                f"Check its type and permissions. {_MAKE_ROOM}",
            ) from error
        self._failure: OSError | None = None

    @property
    def failed(self) -> bool:
        """Whether a write has failed, so that the run should save and end."""
        return self._failure is not None

    def write(self, event: Event) -> None:
        """Append an event."""
        if isinstance(event, Saved):
            self._saved = event.step
        with self._remembering():
            self._lines.write(event)

    def sync(self) -> None:
        """Force the log onto the disk, so that a power failure loses none of it."""
        with self._remembering():
            for path in (self._path, self._path.parent):
                sync(path)

    def check(self) -> None:
        """Raise `DiskError` if a write has failed."""
        if self._failure is None:
            return
        reason = reason_of(self._failure)
        saved = f"step {self._saved:,} was saved" if self._saved else "no checkpoint was saved"
        raise DiskError(
            f"The log {self._path} could not be written: {reason}. The run stopped there; {saved}.",
            _MAKE_ROOM,
        ) from self._failure

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failure = self._failure or error

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._remembering():
            self._lines.close()
        if error is None:
            self.check()


class JsonLines:
    """A file of events, one JSON object per line, flushed after each event.

    A killed process loses no line, but may leave the last one incomplete; `resume` repairs that.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    @classmethod
    def resume(cls, path: Path, step: int) -> "JsonLines":
        """Open the file to continue after ``step``, without its entries about later steps.

        At step 0 all entries are removed. The file is replaced atomically.

        Raises:
            OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as rewritten:
            with rewritten.open("wb") as file:
                if step > 0 and path.exists():
                    file.writelines(_lines_until(path, step))
            sync(rewritten)
        return cls(path)

    def write(self, event: Event) -> None:
        """Append an event, unless it only shows progress, as `Evaluating` does."""
        if not isinstance(event, (Evaluating, Drawing, Progressed)):
            self._file.write(f"{event_to_json(event)}\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def logged_save(path: Path, step: int) -> float | None:
    """Return when a step was saved, according to a log; None if that does not say."""
    found = None
    try:
        with open_regular(path) as file:
            while line := file.readline(MOST_LINE):
                time = _time_of_save(line, step)
                found = found if time is None else time
    except OSError:
        return None
    return found


def _time_of_save(line: bytes, step: int) -> float | None:
    if b'"saved"' not in line:  # most lines are about other events
        return None
    try:
        event = event_from_json(line)
    except ValueError:
        return None
    return event.time if isinstance(event, Saved) and event.step == step else None


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    """Yield the lines of a log up to a step, without those that are not records of a run.

    A line without a step, such as a note, is as late as the one before it.
    """
    later = False
    with open_regular(path) as file:
        while line := file.readline(MOST_LINE):  # a longer line comes in pieces, none a record
            try:
                number = _step_of(line)
            except ValueError:  # cut off by a kill, or not from a run
                continue
            if number is not None:
                later = number > step
            if not later:
                yield line.rstrip(b"\n") + b"\n"


def _step_of(line: bytes) -> int | None:
    """Return the step that a line of a log is about; None if it is about no step.

    Raises:
        ValueError: it is not a record of a run.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError("not an event")
    number = record.get("step")
    if number is not None and (type(number) is not int or number < 0):
        raise ValueError("not the number of a step")
    return number
