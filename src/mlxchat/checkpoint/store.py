"""Saved steps as directories, ``step_003225`` and so on, in one folder a run.

A directory is written under a temporary name, with the checksums of its files, synced and renamed:
one with a step's name is complete by construction.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from mlxchat import disk
from mlxchat.checkpoint import files
from mlxchat.checkpoint.files import entries, is_folder, require_connected, unreadable
from mlxchat.errors import DiskError, LockedError, MlxchatError

_STEP = re.compile(r"step_(\d{6,})")
_UNFINISHED = ".unfinished_"


def steps(run: Path) -> list[int]:
    """The steps saved in a run's folder, ascending: links to a disk that is not there too.

    Raises:
        OSError: the folder cannot be read, or is such a link itself.
    """
    found = ((_STEP.fullmatch(path.name), path) for path in entries(run))
    return sorted(int(match.group(1)) for match, path in found if match and is_folder(path))


def directory(run: Path, step: int) -> Path:
    """Where a step is saved."""
    return run / f"step_{step:06d}"


def latest(run: Path) -> Path | None:
    """The newest saved step, None where there is none.

    Raises:
        MlxchatError: the run cannot be read, or that step is on a disk that is not there.
    """
    try:
        saved = steps(run)
    except OSError as error:
        raise unreadable(run, error) from error
    if not saved:
        return None
    newest = directory(run, saved[-1])
    require_connected(newest)
    return newest


def size(folder: Path) -> int:
    """Bytes of the files in a directory, without links to what is not there.

    Raises:
        OSError: it cannot be read.
    """
    return sum(path.stat().st_size for path in folder.iterdir() if path.exists())


def save(run: Path, step: int, write: Callable[[Path], None], needed: int | None = None) -> Path:
    """Make a step's directory out of what ``write`` puts into an empty one.

    Args:
        run: the run's folder.
        step: the number of completed steps.
        write: puts the files into a folder.
        needed: bytes that they take, about; None for as many as those of the step before.

    Raises:
        MlxchatError: the disk is full or cannot be written; what was saved before is untouched.
    """

    def write_with_checksums(folder: Path) -> None:
        write(folder)
        files.write_checksums(folder)

    return _place(run, step, write_with_checksums, needed)


def keep_aside(run: Path, step: int) -> Path:
    """A copy of a saved step in a run of its own, ``d12.good1``, that nothing later writes into.

    It takes no room where the disk has hard links. A copy that is there already is returned.

    Raises:
        MlxchatError: the disk is full or cannot be written.
    """
    source = directory(run, step)
    for number in count(1):
        aside = run.with_name(f"{run.name}.good{number}")
        if not aside.exists():
            break
        if _same(directory(aside, step), source):
            return directory(aside, step)

    def copy(folder: Path) -> None:
        shutil.copytree(source, folder, copy_function=_link_or_copy, dirs_exist_ok=True)

    return _place(aside, step, copy)


def unfinished(run: Path) -> list[Path]:
    """What killed processes left unfinished in a run's folder, and a living one is writing."""
    return sorted(run.glob(f"{_UNFINISHED}*"))


def tidy(run: Path) -> None:
    """Remove what a killed process left unfinished.

    Raises:
        MlxchatError: it cannot be removed.
    """
    try:
        _remove_unfinished(run)
    except OSError as error:
        raise _not_removed(run, error) from error


def prune(run: Path, keep: int) -> list[int]:
    """Remove all but the newest ``keep`` steps, and what killed processes left unfinished.

    With the latter a run's folder goes that has nothing else in it.

    Returns:
        The steps that were removed.

    Raises:
        MlxchatError: one cannot be removed.
    """
    try:
        removed = steps(run)[:-keep]
        for step in removed:
            directory(run, step).rename(run / f"{_UNFINISHED}{step}")
        if unfinished(run):
            _remove_unfinished(run)
            _remove_empty(run)
    except OSError as error:
        raise _not_removed(run, error) from error
    return removed


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only process that writes this run; the lock of a dead one is void.

    Raises:
        LockedError: another process trains it, or removes its old steps.
        MlxchatError: it is on a disk that is not there, or nothing can be written beside it.
    """
    require_connected(run)
    with _lock_file(run) as file:
        if not disk.lock(file.fileno()):
            raise LockedError(
                f"Another process is training {run.name}.",
                "Wait for it to end, or name another run with `model_tag`.",
            )
        yield


def _lock_file(run: Path) -> TextIO:
    path = run.parent / f".{run.name}.lock"
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise DiskError(
            f"{path}, the lock of the run, cannot be opened: {error.strerror or error}.",
            "See whose it is, who may write there, and whether there is room on that disk.",
        ) from error


def _place(run: Path, step: int, write: Callable[[Path], None], needed: int | None = None) -> Path:
    try:
        return _written(run, directory(run, step), write)
    except (OSError, RuntimeError) as error:  # MLX raises the latter
        reason = getattr(error, "strerror", None) or str(error)
        raise _not_saved(run, step, reason.rstrip("."), needed) from error


def _written(run: Path, final: Path, write: Callable[[Path], None]) -> Path:
    """Write a directory in a run's folder; nothing of it is left where that fails or is ended."""
    begun = run / f"{_UNFINISHED}{final.name}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(run)
        begun.mkdir()
        write(begun)
        for path in [*begun.iterdir(), begun]:
            disk.sync(path)
        begun.rename(final)
        for folder in (run, run.parent):
            disk.sync(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
        _remove_empty(run)
    return final


def _not_saved(run: Path, step: int, reason: str, needed: int | None) -> MlxchatError:
    earlier = steps(run)
    if needed is None and earlier:
        needed = size(directory(run, earlier[-1]))
    takes = f"a step takes {needed / 1e6:,.1f} MB, " if needed else ""
    existing = next(path for path in (run, *run.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e6
    intact = "; earlier steps are intact" if earlier else ""
    return DiskError(
        f"Step {step} could not be saved in {run}: {reason} ({takes}{free:,.1f} MB are free).",
        f"Make room on that disk and start the same command again{intact}. "
        "mlxchat checkpoints list shows what all runs take, checkpoints prune removes old steps.",
    )


def _not_removed(run: Path, error: OSError) -> MlxchatError:
    return DiskError(
        f"Old steps in {run} could not be removed: {error.strerror or error}.",
        "The newest are intact. See who may write there; then start the same command again.",
    )


def _remove_unfinished(run: Path) -> None:
    for leftover in unfinished(run):
        if leftover.is_symlink():  # a step that was moved to another disk
            leftover.unlink()
        else:
            shutil.rmtree(leftover)


def _remove_empty(run: Path) -> None:
    with suppress(OSError):  # it is not empty
        run.rmdir()


def _same(a: Path, b: Path) -> bool:
    sums = [folder / files.CHECKSUMS for folder in (a, b)]
    return all(path.exists() for path in sums) and len({path.read_bytes() for path in sums}) == 1


def _link_or_copy(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # a disk without links
        shutil.copy2(source, destination)
