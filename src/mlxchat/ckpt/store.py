"""Saved steps as directories, ``step_003225`` and so on, in one folder a run.

A directory is written under a temporary name, synced and renamed: one with a step's name is
complete by construction.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    except (OSError, RuntimeError) as error:  # MLX raises the latter
        shutil.rmtree(unfinished, ignore_errors=True)
        raise MlxchatError(
            f"Step {step} could not be saved in {run}: {getattr(error, 'strerror', 0) or error}.",
            "Free some space and start the same command again; earlier steps are intact.",
        ) from error
    return final


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` steps."""
    for step in steps(run)[:-keep]:
        removed = directory(run, step).rename(run / f"{_UNFINISHED}{step}")
        shutil.rmtree(removed)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only process that writes this run; the lock of a dead one is void.

    Raises:
        MlxchatError: another process trains it.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    with (run.parent / f".{run.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MlxchatError(
                f"Another process is training {run.name}.",
                "Wait for it to end, or name another run with --model-tag.",
            ) from None
        yield


def _sync(path: Path) -> None:
    """Have the system write a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # a Mac: fsync alone leaves it in the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
