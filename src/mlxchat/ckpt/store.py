"""Saved steps as directories, ``step_003225`` and so on, in one folder a run.

A directory is written under a temporary name, synced and renamed: one with a step's name is
complete by construction.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from mlxchat.errors import MlxchatError

_STEP = re.compile(r"step_(\d{6,})")
_UNFINISHED = ".unfinished_"


def steps(run: Path) -> list[int]:
    """The steps saved in a run's folder, ascending."""
    found = (_STEP.fullmatch(path.name) for path in run.glob("step_*"))
    return sorted(int(match.group(1)) for match in found if match)


def directory(run: Path, step: int) -> Path:
    """Where a step is saved."""
    return run / f"step_{step:06d}"


def latest(run: Path) -> Path | None:
    """The newest saved step, None where there is none."""
    saved = steps(run)
    return directory(run, saved[-1]) if saved else None


def find(runs: Path, tag: str | None, step: int | None) -> Path:
    """The directory of a saved step among the runs in a folder.

    Args:
        tag: of the run; None for the one saved last.
        step: None for the newest.

    Raises:
        MlxchatError: there is none; the message names those that there are, or how to make one.
    """
    saved = {path.name: latest(path) for path in runs.glob("*") if path.is_dir()}
    newest = {name: path for name, path in saved.items() if path is not None}
    if not newest:
        raise MlxchatError(
            f"There is no trained model in {runs}.",
            "Make one: mlxchat quickstart, or mlxchat train",
        )
    name = tag or max(newest, key=lambda name: newest[name].stat().st_mtime)
    if name not in newest:
        raise MlxchatError(
            f"There is no trained model called {name}.", f"There are: {', '.join(sorted(newest))}."
        )
    if step is None:
        return newest[name]
    if step not in steps(runs / name):
        listed = ", ".join(str(number) for number in steps(runs / name))
        raise MlxchatError(f"{name} has no saved step {step}.", f"It has: {listed}.")
    return directory(runs / name, step)


def save(run: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Make a step's directory out of what ``write`` puts into an empty one.

    Raises:
        MlxchatError: the disk is full or cannot be written; what was saved before is untouched.
    """
    final = directory(run, step)
    unfinished = run / f"{_UNFINISHED}{final.name}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        for leftover in run.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        unfinished.mkdir()
        write(unfinished)
        for path in [*unfinished.iterdir(), unfinished]:
            _sync(path)
        unfinished.rename(final)
        _sync(run)
    except OSError as error:
        raise MlxchatError(
            f"Step {step} could not be saved in {run}: {error.strerror or error}.",
            "Free some space and start the same command again; earlier steps are intact.",
        ) from error
    return final


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` steps."""
    for step in steps(run)[:-keep]:
        shutil.rmtree(directory(run, step))


def set_aside(run: Path) -> Path:
    """Rename a run's folder, so that a new run can begin in its place; returns its new name."""
    number = 1
    while (aside := run.with_name(f"{run.name}.old{number}")).exists():
        number += 1
    return run.rename(aside)


def _sync(path: Path) -> None:
    """Have the system write a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
