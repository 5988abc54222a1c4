"""The log of a run that is trained: where it cannot be written, the run saves before it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mlxchat.disk import sync
from mlxchat.errors import DiskError
from mlxchat.telemetry.events import Event, JsonLines, Saved

_MAKE_ROOM = "Make room on that disk and start the same command again."


class RunLog:
    """Within its context, takes events; a failure is remembered, and raised when it is asked for.

    Args:
        path: the file.
        step: the one that was saved last, 0 before any; what the log has of later ones goes.

    Raises:
        MlxchatError: the file cannot be opened, or what it has cannot be kept; it stays as it was.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path, self._saved = path, step
        try:
            self._lines = JsonLines.resume(path, step)
        except OSError as error:
            raise DiskError(
                f"The log {path} cannot be written: {error.strerror or error}.", _MAKE_ROOM
            ) from error
        self._failure: OSError | None = None

    @property
    def failed(self) -> bool:
        """Whether something could not be written, so that the run should save and end."""
        return self._failure is not None

    def write(self, event: Event) -> None:
        """Append an event."""
        if isinstance(event, Saved):
            self._saved = event.step
        with self._remembering():
            self._lines.write(event)

    def sync(self) -> None:
        """Have the system write to the disk what the log has: a power cut loses none of it."""
        with self._remembering():
            for path in (self._path, self._path.parent):
                sync(path)

    def check(self) -> None:
        """Tell of the first failure.

        Raises:
            MlxchatError: there was one.
        """
        if self._failure is None:
            return
        reason = self._failure.strerror or self._failure
        saved = f"step {self._saved:,} is saved" if self._saved else "nothing of it is saved"
        raise DiskError(
            f"The log {self._path} could not be written: {reason}. The run ended there; {saved}.",
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
