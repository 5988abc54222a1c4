"""A library in the place of tensorboardX, for the process of a tracker."""

import json
import os
from pathlib import Path

import pytest

_WRITER = """
import json, sys, time
from pathlib import Path

class SummaryWriter:
    def __init__(self, folder, **settings):
        self.file = (Path(folder) / "written.jsonl").open("a")
        {at_start}

    def add_scalar(self, name, value, step):
        {at_value}
        self._write(name, value, step)

    def add_text(self, name, value, step):
        self._write(name, value, step)

    def _write(self, *what):
        self.file.write(json.dumps(what) + chr(10))
        self.file.flush()

    def close(self):
        {at_end}
        self._write("closed", None, None)
"""


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
    folder.mkdir(parents=True)
    (folder / "tensorboardX.py").write_text(_WRITER.format(**code))
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    patch.syspath_prepend(str(folder))


def written(log_folder: Path) -> list[tuple[str, object, int | None]]:
    """Return what the library got: names, values and steps."""
    path = log_folder / "written.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(json.loads(line)) for line in lines]
