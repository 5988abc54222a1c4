"""The log of a run as a CSV file, or as event files of TensorBoard."""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from pydantic import ValidationError

from mlxchat.checkpoint.files import damaged, unreadable
from mlxchat.disk import new_folder, open_regular, replacing, storing
from mlxchat.errors import ConfigError, NotFound
from mlxchat.home import Home
from mlxchat.report.places import find_run
from mlxchat.telemetry.clock import SYSTEM_CLOCK, TimeOfDay
from mlxchat.telemetry.events import (
    CoreMeasured,
    Evaluated,
    Event,
    Judged,
    Progressed,
    Report,
    Rewarded,
    Started,
    Stepped,
    event_from_json,
)
from mlxchat.telemetry.log import MOST_LINE
from mlxchat.telemetry.meter import Meter
from mlxchat.telemetry.tracked import StepCollector, TrackedRun, TrackedStep
from mlxchat.telemetry.trackers import begin_tracking, require_tracker

LogFormat = Literal["csv", "tensorboard"]
ANOTHER_PLACE = "choose another place with `out`"
COLUMNS = (
    "step",
    "time",
    "tokens",
    "elapsed",
    "loss",
    "learning_rate",
    "gradient_norm",
    "seconds",
    "epoch",
    "memory_active",
    "memory_peak",
    "reward",
    "right",
    "validation_loss",
    "bits_per_byte",
    "core",
    "pass_1",
    "pass_k",
)
_PROGRESS_BYTES = 2**20


class ExportedLog(NamedTuple):
    """The file or folder that was written, and the number of lines or values in it."""

    path: Path
    rows: int


def export_log(
    home: Home,
    name: str,
    to: LogFormat,
    out: Path | None = None,
    report: Report = lambda _: None,
    clock: TimeOfDay = SYSTEM_CLOCK,
) -> ExportedLog:
    """Write the log of a run in a form that other programs read.

    Args:
        home: where the run is.
        name: the run.
        to: the form.
        out: the new file or folder; None for one in the working directory, named after the run.
        report: called with the progress in bytes.
        clock: stamps the progress.

    Raises:
        NotFound: there is no such run, or it has no log.
        ConfigError: the place is taken, or tensorboardX is not installed.
        CheckpointError: the log cannot be read.
        DiskError: the disk is full, or cannot be written.
    """
    run = find_run(home, name)
    log = home.log(name)
    if run.log is None or not log.is_file():
        raise NotFound(
            f"The run {name} has no log: its model was not trained as this run.",
            "Export the run that it was made from.",
        )
    target = out or Path(f"{name}.csv" if to == "csv" else f"{name}-tensorboard")
    if os.path.lexists(target):
        raise ConfigError(f"{target} already exists; nothing was written.", "Use another `out`.")
    reader = _Reader(log, name, report, clock)
    if to == "csv":
        return ExportedLog(target, _write_csv(reader, target))
    require_tracker("tensorboard", "to")
    with new_folder(target, ANOTHER_PLACE) as unfinished, storing(target, ANOTHER_PLACE):
        return ExportedLog(target, _write_tensorboard(reader, name, unfinished))


class _Reader:
    """Yields the events of a log, and reports the progress."""

    def __init__(self, log: Path, name: str, report: Report, clock: TimeOfDay) -> None:
        self._log, self._name, self._report, self._clock = log, name, report, clock

    def __iter__(self) -> Iterator[Event]:
        """Yield the events; lines that are none, or of another version, are skipped.

        Raises:
            CheckpointError: the log cannot be read, or has a value that no run writes.
        """
        done = told = number = 0
        try:
            with open_regular(self._log) as file:
                total = os.fstat(file.fileno()).st_size
                while line := file.readline(MOST_LINE):
                    done, number = done + len(line), number + 1
                    if done - told >= _PROGRESS_BYTES:
                        told = done
                        self._tell(done, total)
                    if (event := _event(line)) is not None:
                        yield event
                self._tell(total, total)
        except ValidationError as error:
            raise damaged(self._log, f"line {number:,}: {error.errors()[0]['msg']}") from error
        except OSError as error:
            raise unreadable(self._log, error) from error

    def _tell(self, done: int, total: int) -> None:
        self._report(Progressed(self._clock(), self._name, done, total, "bytes"))


def _event(line: bytes) -> Event | None:
    try:
        return event_from_json(line)
    except ValidationError:
        raise
    except ValueError:
        return None


def measured_values(event: Event) -> dict[str, float]:
    """Return what an event measures, by the names of `COLUMNS`; nothing if it measures nothing."""
    match event:
        case Stepped():
            return {
                "loss": event.loss,
                "learning_rate": event.learning_rate,
                "gradient_norm": event.gradient_norm,
                "seconds": event.seconds,
                "epoch": event.position.epoch,
                "memory_active": event.memory.active,
                "memory_peak": event.memory.peak,
            }
        case Evaluated():
            return {"validation_loss": event.loss, "bits_per_byte": event.bits_per_byte}
        case CoreMeasured():
            return {"core": event.core}
        case Rewarded():
            return {"reward": event.reward, "right": event.right}
        case Judged():
            return {"pass_1": event.pass_1, "pass_k": event.pass_k}
        case _:
            return {}


# ==== CSV ====


def _write_csv(reader: _Reader, target: Path) -> int:
    rows = 0
    with (
        storing(target, ANOTHER_PLACE),
        replacing(target) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = _rows_to(file)
        for row in _rows(reader):
            writer.writerow({name: _written(value) for name, value in row.items()})
            rows += 1
    return rows


def _rows_to(file: TextIO) -> "csv.DictWriter[str]":
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    return writer


def _rows(events: _Reader) -> Iterator[dict[str, float]]:
    """Yield a row for each step, with all that was measured after it."""
    row: dict[str, float] = {}
    tokens_per_step, elapsed = math.nan, 0.0
    for event in events:
        tokens_per_step = _tokens_of_steps(event, tokens_per_step)
        values = measured_values(event)
        if not values:
            continue
        step = getattr(event, "step", 0)
        if row and row["step"] != step:
            yield row
            row = {}
        if isinstance(event, Stepped):
            elapsed += event.seconds if math.isfinite(event.seconds) else 0.0
        place = {"step": step, "time": event.time, "elapsed": elapsed}
        row = {**row, **place, "tokens": step * tokens_per_step, **values}
    if row:
        yield row


def _tokens_of_steps(event: Event, before: float) -> float:
    """Return the tokens of a step from an event on; NaN if they differ from step to step."""
    if isinstance(event, Rewarded):
        return math.nan
    return event.tokens_per_step if isinstance(event, Started) else before


def _written(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return repr(value) if math.isfinite(value) else ""


# ==== TensorBoard ====


def _write_tensorboard(reader: _Reader, name: str, folder: Path) -> int:
    """Write what a run that is tracked sends to TensorBoard."""
    written, meter = 0, Meter()
    run = TrackedRun("tensorboard", name, str(folder), step=0, settings={})
    tracker = begin_tracking(run, key=name, known=True)
    collector = StepCollector(0, meter)

    def write(step: TrackedStep | None) -> int:
        if step is None:
            return 0
        tracker.log(step)
        return len(step.values) + bool(step.samples)

    try:
        for event in reader:
            meter.update(event)
            written += write(collector.add(event))
        return written + write(collector.rest())
    finally:
        tracker.finish(failed=False)
