"""The time at which a step was saved, stored in the step itself.

The times of files and folders cannot tell: copying a home changes them, and so does a stray file.
"""

import json
import math
import os
from pathlib import Path

from pydantic import TypeAdapter

from mlxchat.checkpoint.files import CHECKSUMS, files_with_checksums, read_json, verify_file
from mlxchat.errors import MlxchatError
from mlxchat.json_text import as_type
from mlxchat.telemetry.events import MOST_SECONDS, Time
from mlxchat.telemetry.log import logged_save

STAMP = "saved.json"

_TIME: TypeAdapter[float] = TypeAdapter(Time)


def write_stamp(folder: Path, time: float) -> None:
    """Write when a step is saved, in seconds since the epoch, into its directory."""
    (folder / STAMP).write_text(json.dumps({"time": time}), "utf-8")


def saved_at(folder: Path, step: int, log: Path | None = None) -> float:
    """Return when a step was saved, in seconds since the epoch.

    A step of an earlier version does not store it. Then it is taken from the run's log or, if that
    does not say, from the file of checksums, which was written last.

    Args:
        folder: the step's directory.
        step: its number.
        log: the log of its run; None to do without.

    Raises:
        OSError: the directory cannot be read.
    """
    stamped = _stamped(folder)
    if stamped is None and log is not None:
        stamped = logged_save(log, step)
    if stamped is not None:
        return stamped
    checksums = folder / CHECKSUMS
    changed = (checksums if checksums.is_file() else folder).stat().st_mtime
    return max(0.0, min(changed, MOST_SECONDS))


def verify_stamp(folder: Path) -> None:
    """Compare the time in a step's directory with its checksum, if it has one.

    Raises:
        CheckpointError: it is missing or not what was saved.
    """
    if os.path.lexists(folder / CHECKSUMS) and STAMP in files_with_checksums(folder):
        verify_file(folder / STAMP)


def _stamped(folder: Path) -> float | None:
    try:
        time = as_type(read_json(folder / STAMP).get("time"), _TIME)
    except (MlxchatError, ValueError):
        return None
    return time if math.isfinite(time) else None
