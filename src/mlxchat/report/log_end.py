"""The end of a run's log: what happened since the newest checkpoint, read from the end backwards.

A log has a line for each step; that of a long run takes seconds to read. Everything up to the
newest checkpoint is in its trainer.json, so only what came after it has to be read.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from mlxchat.checkpoint.files import in_words
from mlxchat.disk import open_regular
from mlxchat.telemetry.events import (
    EVENT_NAMES,
    Ended,
    Evaluated,
    Event,
    Judged,
    Replanned,
    Started,
    Stepped,
    event_from_json,
)
from mlxchat.telemetry.log import MOST_LINE

BLOCK_BYTES = 2**14  # bytes read at a time
MOST_READ = 2**20  # bytes of a log that are read at most: 2,000 steps or more


@dataclass
class LogEnd:
    """The part of a log that follows the newest checkpoint.

    Attributes:
        time: when the last event happened, seconds since the epoch; None if there is none.
        ending: how the run ended; None if it did not.
        step: the last completed step; None if the log does not say.
        total_steps: the steps of the whole run; None if the log's end does not say.
        seconds: of training since the checkpoint. Where more steps have passed than are read, the
            others are taken to be as long as those.
        evaluations, scores: step and bits per byte, step and pass@1, ascending.
        whole: whether nothing that came after the checkpoint was left out.
    """

    time: float | None = None
    ending: str | None = None
    step: int | None = None
    total_steps: int | None = None
    seconds: float = 0.0
    evaluations: tuple[tuple[int, float], ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    whole: bool = True


def read_log_end(path: Path, saved: int | None, most: int = MOST_READ) -> LogEnd:
    """Read a log from its end, back to the newest checkpoint.

    An incomplete last line, and lines that are no events, are skipped.

    Args:
        path: the log. One that does not exist is empty.
        saved: the step of the newest checkpoint; None if there is none.
        most: the most bytes to read.

    Raises:
        OSError: it cannot be read.
        ValueError: an event has a value that no run writes, or a line is too long.
    """
    end, decided, steps = LogEnd(), False, 0
    measured, saved = -1 if saved is None else saved, saved or 0  # step 0 is measured, too
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return end
    with file:
        size = file.seek(0, os.SEEK_END)
        end.whole = size <= most
        for event in _events_backwards(file, size, most):
            end.time = event.time if end.time is None else end.time
            if isinstance(event, Started | Stepped | Ended) and not decided:
                decided = True
                end.ending = event.reason if isinstance(event, Ended) else None
                end.step = event.step
            if isinstance(event, Started | Replanned) and end.total_steps is None:
                end.total_steps = event.total_steps
            if isinstance(event, Stepped):
                if event.step <= saved:
                    end.whole = True
                    break
                steps += 1
                end.seconds += event.seconds if math.isfinite(event.seconds) else 0.0
            _keep_measured(end, event, measured)
    if not end.whole and end.step is not None and steps:
        end.seconds *= max(1.0, (end.step - saved) / steps)
    return end


def read_events_of(path: Path, *kinds: type[Event]) -> list[Event]:
    """Return all events of some kinds in a log, oldest first, without parsing the other lines.

    Lines that are no such events, or of another version, are skipped. A log that does not exist
    has none.

    Raises:
        OSError: it cannot be read.
    """
    starts = tuple(f'{{"event": "{EVENT_NAMES[kind]}"'.encode() for kind in kinds)
    found = []
    try:
        with open_regular(path) as file:
            while line := file.readline(MOST_LINE):
                if line.startswith(starts):
                    with suppress(ValueError):
                        found.append(event_from_json(line))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def _keep_measured(end: LogEnd, event: Event, saved: int) -> None:
    if isinstance(event, Evaluated) and event.step > saved and math.isfinite(event.bits_per_byte):
        end.evaluations = ((event.step, event.bits_per_byte), *end.evaluations)
    if isinstance(event, Judged) and event.step > saved and math.isfinite(event.pass_1):
        end.scores = ((event.step, event.pass_1), *end.scores)


def _events_backwards(file: BinaryIO, size: int, most: int) -> Iterator[Event]:
    for line in _lines_backwards(file, size, most):
        try:
            yield event_from_json(line)
        except ValidationError as error:
            raise ValueError(in_words(error)) from error
        except ValueError:
            continue


def _lines_backwards(file: BinaryIO, size: int, most: int) -> Iterator[bytes]:
    """Yield the complete lines in the last ``most`` bytes of a file, the last one first."""
    place, least, rest = size, max(0, size - most), b""
    at_the_end = True  # where what follows the last line feed is an incomplete line, or nothing
    while place > least:
        begin = max(least, place - BLOCK_BYTES)
        file.seek(begin)
        rest, *lines = (file.read(place - begin) + rest).split(b"\n")
        place = begin
        if lines and at_the_end:
            lines, at_the_end = lines[:-1], False
        yield from reversed(lines)
        if len(rest) > MOST_LINE:
            raise ValueError(f"a line of more than {MOST_LINE:,} bytes")
    if place == 0 and not at_the_end:
        yield rest
