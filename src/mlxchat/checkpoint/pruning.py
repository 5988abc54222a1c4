"""Compares checkpoints with their checksums, and removes old ones once the newest is intact."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlxchat.checkpoint import files, store
from mlxchat.checkpoint.files import require_connected, unreadable
from mlxchat.disk import DiskUse, disk_use
from mlxchat.errors import CheckpointError, MlxchatError

FIRST_WITH_CHECKSUMS = 3  # format of trainer.json


class Removed(NamedTuple):
    """A checkpoint, or what a killed process left of one, that was or would be removed."""

    tag: str
    step: int | None  # None for an unfinished one
    path: Path
    use: DiskUse


def prune_verified(
    run: Path,
    keep: int,
    dry_run: bool,
    removed: Callable[[Removed], None],
    report: Callable[[Path, int, int], None],
) -> None:
    """Remove old steps as `store.prune` does, once every file of the newest step is found intact.

    Args:
        run: the run's folder.
        keep: the number of newest steps to keep, beside the best one.
        dry_run: remove nothing.
        removed: called with each step that is gone or, in a dry run, would be; also when an error
            follows.
        report: as for `verify`.

    Raises:
        LockedError: the run is being trained.
        CheckpointError: its newest step is not intact, or has no checksums.
        DiskError: an old step cannot be removed.
    """
    with store.locked(run):
        numbers = store.require_steps(run)
        old = [
            _old_step(run, step, store.directory(run, step)) for step in store.old_steps(run, keep)
        ]
        if old:
            newest = store.directory(run, numbers[-1])
            _require_verifiable(newest)
            verify(newest, report)
        left = [folder for folder in store.unfinished(run) if not folder.is_symlink()]
        old += [_old_step(run, None, folder) for folder in left]
        try:
            if not dry_run:
                store.prune(run, keep)
        finally:
            for step in old:
                if dry_run or not os.path.lexists(step.path):
                    removed(step)


def verify(folder: Path, report: Callable[[Path, int, int], None]) -> None:
    """Compare every file of a checkpoint with its checksum.

    Args:
        folder: the step's directory.
        report: called with the directory, the bytes read so far and the bytes in all.

    Raises:
        MlxchatError: a file is missing or not what was saved, or there are no checksums.
    """
    require_connected(folder)
    paths = [folder / name for name in files.files_with_checksums(folder)]
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    before = 0
    for path, size in zip(paths, sizes, strict=True):

        def read(done: int, before: int = before) -> None:
            report(folder, before + done, sum(sizes))

        files.verify_file(path, read)
        before += size


def _old_step(run: Path, step: int | None, folder: Path) -> Removed:
    try:
        list(folder.iterdir())  # what cannot be read cannot be removed either
    except OSError as error:
        raise unreadable(folder, error) from error
    use = disk_use([folder])
    if folder.is_symlink():  # only the link is removed
        use = DiskUse(use.bytes, linked=use.bytes)
    return Removed(run.name, step, folder, use)


def _require_verifiable(folder: Path) -> None:
    """Raise `CheckpointError` for a step saved by a version that wrote no checksums."""
    try:
        saved_as = files.read_json(folder / files.TRAINER).get("format")
    except MlxchatError:
        return
    earlier = isinstance(saved_as, int) and saved_as < FIRST_WITH_CHECKSUMS
    if earlier and not os.path.lexists(folder / files.CHECKSUMS):
        raise CheckpointError(
            f"{folder} was saved by an earlier version of mlxchat, without checksums.",
            "It cannot be verified. Remove old checkpoints of that run by hand.",
        )
