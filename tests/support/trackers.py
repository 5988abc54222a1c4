"""A library in the place of tensorboardX, for the process of a tracker."""

import json
import os
from pathlib import Path

import pytest

_WRITER = """
import json, sys, time
from pathlib import Path

class EventsWriter:
    def __init__(self, prefix, suffix):
        self.file = (Path(prefix).parent / "written.jsonl").open("a")
        {at_start}

    def write_event(self, event):
        (name, value), step = event["summary"], event["step"]
        if isinstance(value, float):
            {at_value}
        self._write(name, value, step)

    def _write(self, *what):
        self.file.write(json.dumps(what) + chr(10))
        self.file.flush()

    def flush(self):
        pass

    def close(self):
        {at_end}
        self._write("closed", None, None)
"""
_REST = {
    "__init__": "",
    "summary": "def scalar(name, value): return name, value\n\ntext = scalar",
    "proto/__init__": "",
    "proto/event_pb2": "Event = dict",
}


def planted_writer(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    at_start: str = "",
    at_value: str = "",
    at_end: str = "",
) -> None:
    """Have the process of a tracker find a library that writes down what it gets.

    Args:
        folder: where it is put.
        patch: sets the process's search path.
        at_start, at_value, at_end: statements that it executes as well.
    """
    code = {"at_start": at_start, "at_value": at_value, "at_end": at_end}
    code = {name: statement or "pass" for name, statement in code.items()}
    for module, text in (_REST | {"event_file_writer": _WRITER.format(**code)}).items():
        path = folder / "tensorboardX" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    patch.syspath_prepend(str(folder))


def written(log_folder: Path) -> list[tuple[str, object, int | None]]:
    """Return what the library got: names, values and steps."""
    path = log_folder / "written.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(json.loads(line)) for line in lines]
