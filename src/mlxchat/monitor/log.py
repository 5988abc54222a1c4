"""A run's log, read as it grows."""

import math
import os
from pathlib import Path

from mlxchat.telemetry.events import Ended, Started, Stepped, from_json
from mlxchat.telemetry.meter import Meter


class Log:
    """What a run's log says so far; `read` goes on where it left off.

    Attributes:
        meter: the events, folded.
        latest: the last step.
        ending: how the run ended by its own word, None while it goes on.
        time: of the last event, seconds since the epoch.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None  # device and inode of the file that was read
        self._offset = 0
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self.meter = Meter()
        self.latest: Stepped | None = None
        self.ending: str | None = None
        self.time: float | None = None

    def read(self) -> None:
        """Take in the lines that have come; all of them where the file is another by now.

        A line whose end is missing is left for the next time, one that is broken left out. A log
        that has gone leaves everything as it was.
        """
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                identity = (facts.st_dev, facts.st_ino)
                if identity != self._file or facts.st_size < self._offset:
                    self._forget()
                    self._file = identity
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._take(line)
        except OSError:
            return

    def _take(self, line: bytes) -> None:
        try:
            event = from_json(line)
        except ValueError:
            return
        if not math.isfinite(event.time):
            return
        self.time = event.time
        match event:
            case Started():
                self.ending = None
            case Stepped():
                self.latest = event
            case Ended():
                self.ending = event.reason
        self.meter.update(event)
