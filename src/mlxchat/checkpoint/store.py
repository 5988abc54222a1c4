"""Saves steps as directories, ``step_003225`` and so on, in a folder for each run.

A directory is written under a temporary name, with the checksums of its files, then synced and
renamed: one with a step's name is complete by construction. One process at a time may write to a
run (`locked`). The lock is a file, which somebody may delete, so it is checked again before each
write. Old steps are removed here too, and with more care in `mlxchat.checkpoint.pruning`.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from mlxchat import disk
from mlxchat.checkpoint import files
from mlxchat.checkpoint.bases import is_needed, needed_weights
from mlxchat.checkpoint.best import step_to_keep
from mlxchat.checkpoint.files import entries, is_folder, require_connected, unreadable
from mlxchat.checkpoint.stamp import write_stamp
from mlxchat.counts import round_size
from mlxchat.device_failures import explained
from mlxchat.errors import CheckpointError, DiskError, MlxchatError, reason_of
from mlxchat.locks import Lock, in_use
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock

_STEP = re.compile(r"step_([0-9]{6}|[1-9][0-9]{6,})")  # as `directory` writes it
_UNFINISHED = ".unfinished_"


def steps(run: Path) -> list[int]:
    """Return the steps saved in a run's folder in ascending order, broken links included.

    Raises:
        OSError: the folder cannot be read, or is a broken link itself.
    """
    found = ((_STEP.fullmatch(path.name), path) for path in entries(run))
    return sorted(int(match.group(1)) for match, path in found if match and is_folder(path))


def require_steps(run: Path) -> list[int]:
    """Return `steps`, with an error that a user can understand where they cannot be read.

    Raises:
        MlxchatError: the folder cannot be read.
    """
    try:
        return steps(run)
    except OSError as error:
        raise unreadable(run, error) from error


def directory(run: Path, step: int) -> Path:
    """Return the directory of a step."""
    return run / f"step_{step:06d}"


def step_of(folder: Path) -> int:
    """Return the number of the step in a `directory`.

    >>> step_of(directory(Path("d12"), 700))
    700
    """
    return int(folder.name.removeprefix("step_"))


def latest(run: Path) -> Path | None:
    """Return the directory of the newest checkpoint; None if there is none.

    Raises:
        MlxchatError: the run cannot be read, or that step is on a disk that is not connected.
    """
    saved = require_steps(run)
    if not saved:
        return None
    newest = directory(run, saved[-1])
    require_connected(newest)
    return newest


def is_resumable(run: Path) -> bool:
    """Return whether training can resume from the newest step of a run, if that is undamaged.

    It cannot from an imported model, a quantized copy, or a run that cannot be read.
    """
    with suppress(MlxchatError):
        newest = latest(run)
        return newest is not None and (newest / files.TRAINER).exists()
    return False


def size(folder: Path) -> int:
    """Return the bytes of the files in a directory, without broken links.

    Raises:
        OSError: it cannot be read.
    """
    return sum(path.stat().st_size for path in folder.iterdir() if path.exists())


def save(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    needed: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
    replaces: bool = False,
) -> Path:
    """Save a step; returns its directory.

    Args:
        run: the run's folder.
        step: the number of completed steps.
        write: writes the step's files into an empty folder.
        needed: bytes that they take, roughly; None for those of the step before.
        clock: stamps the step with the time of day.
        replaces: whether the same step is removed once this one is written, if it is there.

    Raises:
        DiskError: the disk is full or cannot be written; earlier steps are untouched.
        CheckpointError: that step is there already, and is not to be replaced.
        LockedError: another process has taken over the run (`require_lock`).
    """

    def write_with_checksums(folder: Path) -> None:
        write(folder)
        write_stamp(folder, clock())
        files.write_checksums(folder)

    return _place(run, step, write_with_checksums, needed, replaces)


def keep_aside(run: Path, step: int) -> Path:
    """Copy a checkpoint into a run of its own, such as ``d12.good1``, that no training writes to.

    It takes no space on a disk with hard links. An existing copy is used.

    Returns:
        The directory of the copy.

    Raises:
        DiskError: the disk is full or cannot be written.
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
    """Return the unfinished directories in a run's folder: abandoned, or being written now."""
    return sorted(run.glob(f"{_UNFINISHED}*"))


def tidy(run: Path) -> None:
    """Remove the unfinished directories of a run that this process has `locked`.

    Raises:
        DiskError: one cannot be removed.
    """
    try:
        _remove_unfinished(run)
    except OSError as error:
        raise _not_removed(run, error) from error


def old_steps(run: Path, keep: int) -> list[int]:
    """Return the steps that `prune` removes: all but the newest ``keep`` and the best one.

    A step that an adapter in the same home needs is not removed either.

    Raises:
        OSError: the folder cannot be read.
    """
    saved = steps(run)
    if not saved[:-keep]:
        return []
    best = step_to_keep(directory(run, saved[-1]), saved)
    needed = needed_weights(run.parent.parent)
    return [
        step
        for step in saved[:-keep]
        if step != best and not is_needed(directory(run, step), needed)
    ]


def prune(run: Path, keep: int) -> list[int]:
    """Remove the `old_steps`, and the unfinished directories.

    The run's folder is removed too if nothing else is in it.

    Returns:
        The steps that were removed.

    Raises:
        DiskError: one cannot be removed.
        LockedError: another process has taken over the run (`require_lock`).
    """
    require_lock(run)
    try:
        removed = old_steps(run, keep)
        for step in removed:
            directory(run, step).rename(run / f"{_UNFINISHED}{step}")
        if unfinished(run):
            _remove_unfinished(run)
            _remove_empty(run)
    except OSError as error:
        raise _not_removed(run, error) from error
    return removed


_held: dict[Path, Lock] = {}  # the locks of this process, by run


_WAIT = "Wait for it to finish, or use another name with `model_tag`."


@contextmanager
def locked(run: Path, wait: str = _WAIT) -> Iterator[None]:
    """Keep other processes from writing to a run. The lock of a process that died is void.

    Args:
        run: the run's folder, which need not exist.
        wait: what to do while another process has the lock, for the error message.

    Raises:
        LockedError: another process writes to it.
        DiskError: its disk is not connected, or the lock file cannot be written.
    """
    require_connected(run)
    path = _lock_file(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(path)
    except OSError as error:
        raise _no_lock(path, error) from error
    if lock is None:
        raise in_use(
            path,
            f"Another process is using the run {run.name}.",
            wait,
        )
    with lock:
        _held[run] = lock
        try:
            yield
        finally:
            del _held[run]


def drop_lock_file(run: Path) -> None:
    """Remove the lock file of a run that this process has `locked`, and that is gone."""
    with suppress(OSError):
        _lock_file(run).unlink()


def require_lock(run: Path) -> None:
    """Check that a run which this process has `locked` is still its own.

    If the lock file was deleted, the run is locked again, unless another process was faster.

    Raises:
        LockedError: another process has locked the run.
    """
    lock, path = _held.get(run), _lock_file(run)
    if lock is None:
        return
    try:
        kept = lock.renew()
    except OSError as error:
        raise _no_lock(path, error) from error
    if not kept:
        raise in_use(
            path,
            f"Another process has taken over the run {run.name}: this process's lock, {path}, was "
            "deleted.",
            "Nothing more was written. Wait for the other process to finish, then repeat the "
            "command.",
        )


def _lock_file(run: Path) -> Path:
    return run.parent / f".{run.name}.lock"


def _no_lock(path: Path, error: OSError) -> DiskError:
    return DiskError(
        f"The run's lock {path} cannot be opened: {reason_of(error)}.",
        "Check its owner, its permissions, and whether there is space left on that disk.",
    )


def _place(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    needed: int | None = None,
    replaces: bool = False,
) -> Path:
    try:
        with explained():
            return _written(run, directory(run, step), write, replaces)
    except (OSError, RuntimeError) as error:  # MLX raises the latter
        raise _not_saved(run, step, reason_of(error), needed) from error


def _written(run: Path, final: Path, write: Callable[[Path], None], replaces: bool) -> Path:
    """Write a directory in a run's folder; nothing is left of it if that fails."""
    require_lock(run)
    if final.exists() and not replaces:
        raise CheckpointError(
            f"{final} already exists; nothing was written.",
            "Use another name, or delete that folder to replace it.",
        )
    unfinished_step = run / f"{_UNFINISHED}{final.name}.{secrets.token_hex(4)}"  # no one else's
    try:
        run.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(run)
        unfinished_step.mkdir()
        write(unfinished_step)
        for path in [*unfinished_step.iterdir(), unfinished_step]:
            disk.sync(path)
        require_lock(run)
        if final.exists():
            final.rename(run / f"{_UNFINISHED}{final.name}.{secrets.token_hex(4)}")
        unfinished_step.rename(final)
        if replaces:
            _remove_unfinished(run)
        for folder in (run, run.parent):
            disk.sync(folder)
    finally:
        shutil.rmtree(unfinished_step, ignore_errors=True)
        _remove_empty(run)
    return final


def _not_saved(run: Path, step: int, reason: str, needed: int | None) -> MlxchatError:
    earlier = steps(run)
    if needed is None and earlier:
        needed = size(directory(run, earlier[-1]))
    takes = f"a step takes {round_size(needed)}, " if needed else ""
    free = round_size(disk.free_space(run))
    intact = "; earlier checkpoints are intact" if earlier else ""
    return DiskError(
        f"Step {step} could not be saved in {run}: {reason} ({takes}{free} are free).",
        f"Free space on that disk, then repeat the command{intact}. mlxchat checkpoints list "
        "shows the sizes of all runs, and mlxchat checkpoints prune removes old checkpoints.",
    )


def _not_removed(run: Path, error: OSError) -> MlxchatError:
    return DiskError(
        f"Old checkpoints in {run} could not be removed: {reason_of(error)}.",
        "The newest ones are intact. Check the folder's permissions, then repeat the command.",
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
