"""What `mlxchat checkpoints` does: shows, checks and removes saved steps. Needs no arrays."""

import json as json_format
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import typer

from mlxchat.checkpoint import catalog, files, store
from mlxchat.checkpoint.catalog import TRAINER, SavedStep, saved_steps
from mlxchat.checkpoint.files import require_connected, unreadable
from mlxchat.errors import CheckpointError, LockedError, MlxchatError, NotFound
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted, Progressed
from mlxchat.ui.console import Screen, say, table, warning
from mlxchat.ui.text import amount

DATE = "%Y-%m-%d %H:%M"
FIRST_WITH_CHECKSUMS = 3  # format of trainer.json
_NOTHING = "Nothing is saved in {}. Train a model: mlxchat train"


class Removed(NamedTuple):
    """A step that is gone, or would be."""

    tag: str
    step: int | None  # None for one that a killed process left unfinished
    path: Path
    bytes: int


def show_list(tag: str | None, json: bool) -> None:
    """Show what is saved; exit code 1 where some of it cannot be read."""
    faults: list[MlxchatError] = []
    found = saved_steps(_runs(tag), faults.append)
    for fault in faults:
        warning(f"{fault.problem} {fault.remedy}")
    if json:
        say(json_format.dumps([{**asdict(saved), "path": str(saved.path)} for saved in found]))
    elif found:
        _show_table(found)
    elif not faults:
        say(_NOTHING.format(Home.from_environment().root))
    if faults:
        raise typer.Exit(1)


def _show_table(found: Sequence[SavedStep]) -> None:
    table(
        ["run", "step", "MB", "goes on", "model", "saved"],
        [
            [
                saved.tag,
                saved.step,
                round(saved.bytes / 1e6, 1),
                "yes" if saved.trainable else "no",
                f"quantized, {saved.bits} bits" if saved.bits else "whole",
                time.strftime(DATE, time.localtime(saved.saved)),
            ]
            for saved in found
        ],
    )
    say(f"{amount(len(found), 'steps')}, {amount(sum(saved.bytes for saved in found), 'bytes')}")


def verify(tag: str | None, step: int | None, checkpoint: Path | None, json: bool) -> None:
    """Compare every file with its checksum; exit code 1 where one is not what was saved.

    How far it is goes to standard error.
    """
    faults: dict[Path, str | None] = {}
    with Screen(stream=sys.stderr) as screen:
        for folder in _folders(tag, step, checkpoint, faults):
            faults[folder] = _fault(folder, screen)
    if json:
        say(json_format.dumps([{"path": str(f), "fault": fault} for f, fault in faults.items()]))
    elif not faults:
        say(_NOTHING.format(Home.from_environment().root))
    else:
        for folder, fault in faults.items():
            say(fault or f"{folder} is intact.")
    if any(faults.values()):
        raise typer.Exit(1)


def prune(tag: str | None, keep: int, dry_run: bool, json: bool) -> None:
    """Remove all but the newest steps of one run or of all, where the newest one is intact; and
    what killed processes left unfinished, also of runs that have no step.

    A run that was not named is left out while it is trained, and where its newest step is not
    intact or an old one cannot be removed; exit code 1 after the latter two.
    """
    removed: list[Removed] = []
    faults: dict[Path, str] = {}
    with Screen(stream=sys.stderr) as screen:
        for run in _runs_to_prune(tag):
            try:
                _prune(run, keep, dry_run, removed, screen)
            except MlxchatError as error:
                if tag is not None:
                    raise
                screen.show(Noted(time.time(), f"{error.problem} {error.remedy}"))
                if not isinstance(error, LockedError):
                    faults[run] = error.problem
    freed = sum(saved.bytes for saved in removed)
    if json:
        paths = [str(saved.path) for saved in removed]
        left = [{"path": str(run), "fault": fault} for run, fault in faults.items()]
        said = {"removed": paths, "bytes": freed, "dry_run": dry_run, "left_out": left}
        say(json_format.dumps(said))
    else:
        for saved in removed:
            step = "unfinished" if saved.step is None else f"step {saved.step:,}"
            say(f"{saved.tag}, {step}: {amount(saved.bytes, 'bytes')}")
        done = "would be removed" if dry_run else "removed"
        count = sum(saved.step is not None for saved in removed)
        say(f"{amount(count, 'steps')} {done}, {amount(freed, 'bytes')}.")
    if faults:
        raise typer.Exit(1)


def _prune(run: Path, keep: int, dry_run: bool, removed: list[Removed], screen: Screen) -> None:
    """Remove the old steps of a run; those that are gone by then are added to ``removed``.

    Raises:
        MlxchatError: the run is being trained, its newest step is not intact, or an old one cannot
            be read or removed.
    """
    with store.locked(run):
        numbers = _steps(run)
        old = [_old_step(run, step, store.directory(run, step)) for step in numbers[:-keep]]
        if old:
            _require_prunable(store.directory(run, numbers[-1]), screen)
        left = [folder for folder in store.unfinished(run) if not folder.is_symlink()]
        old += [_old_step(run, None, folder) for folder in left]
        try:
            if not dry_run:
                store.prune(run, keep)
        finally:
            removed += [step for step in old if dry_run or not os.path.lexists(step.path)]


def _old_step(run: Path, step: int | None, folder: Path) -> Removed:
    try:
        return Removed(run.name, step, folder, store.size(folder))
    except OSError as error:
        raise unreadable(folder, error) from error


def _require_prunable(folder: Path, screen: Screen) -> None:
    """Check every file of a run's newest step.

    Raises:
        MlxchatError: as `_require_intact`; another where the step cannot have checksums.
    """
    if _without_checksums(folder):
        raise CheckpointError(
            f"{folder} was saved by an earlier version of mlxchat, without checksums.",
            "It cannot be checked: remove old steps of that run by hand.",
        )
    _require_intact(folder, screen)


def _without_checksums(folder: Path) -> bool:
    """Whether a step is of the versions that saved none."""
    try:
        fields = json_format.loads((folder / TRAINER).read_bytes())
    except (OSError, ValueError):
        return False
    saved_as = fields.get("format") if isinstance(fields, dict) else None
    earlier = isinstance(saved_as, int) and saved_as < FIRST_WITH_CHECKSUMS
    return earlier and not os.path.lexists(folder / files.CHECKSUMS)


def _runs(tag: str | None) -> list[Path]:
    """The folders of one run or of all.

    Raises:
        MlxchatError: there is no such run; those that there are are named.
    """
    stages = Home.from_environment().stages
    found = [run for run in catalog.runs(stages) if tag in (None, run.name)]
    if tag is not None and not any(_steps(run) for run in found):
        catalog.find(stages, tag, None)
    return found


def _runs_to_prune(tag: str | None) -> list[Path]:
    """As `_runs`, and one too of which a killed process left something unfinished only."""
    stages = Home.from_environment().stages
    left = [run for run in catalog.runs(stages) if run.name == tag and store.unfinished(run)]
    return left or _runs(tag)


def _steps(run: Path) -> list[int]:
    """The steps saved in a run's folder.

    Raises:
        MlxchatError: it cannot be read.
    """
    try:
        return store.steps(run)
    except OSError as error:
        raise unreadable(run, error) from error


def _folders(
    tag: str | None, step: int | None, checkpoint: Path | None, faults: dict[Path, str | None]
) -> list[Path]:
    """The steps to verify: that one, those of a run, or all.

    Runs that cannot be read are added to ``faults``.
    """
    if step is not None:
        return [catalog.find(Home.from_environment().stages, tag, step)]
    if checkpoint is not None and not checkpoint.is_dir():
        raise NotFound(f"There is no directory {checkpoint}.", "Give a model's directory.")
    folders = []
    for run in [checkpoint] if checkpoint else _runs(tag):
        try:
            folders += [store.directory(run, number) for number in _steps(run)]
        except MlxchatError as error:
            faults[run] = error.problem
    return [checkpoint] if checkpoint and not folders and not faults else folders


def _fault(folder: Path, screen: Screen) -> str | None:
    try:
        _require_intact(folder, screen)
    except MlxchatError as error:
        return error.problem
    return None


def _require_intact(folder: Path, screen: Screen) -> None:
    """Check every file, showing how far it is.

    Raises:
        MlxchatError: a file is missing or not what was saved, or there are no checksums.
    """
    require_connected(folder)
    paths = [folder / name for name in files.summed_files(folder)]
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    task, before = f"{folder.parent.name}/{folder.name}", 0
    for path, size in zip(paths, sizes, strict=True):

        def report(done: int, before: int = before) -> None:
            now = time.time()
            screen.show(Progressed(now, task, before + done, sum(sizes), "bytes"))

        files.check_file(path, report)
        before += size
