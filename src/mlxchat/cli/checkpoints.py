"""What `mlxchat checkpoints` does: shows, checks and removes saved steps. Needs no arrays."""

import json as json_format
import sys
import time
from dataclasses import asdict
from pathlib import Path

import typer

from mlxchat.ckpt import checksums, store
from mlxchat.ckpt.catalog import TRAINER, SavedStep, saved_steps
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry import Noted, Progressed
from mlxchat.ui.bars import amount
from mlxchat.ui.console import Screen, say, table

DATE = "%Y-%m-%d %H:%M"
FIRST_WITH_CHECKSUMS = 3  # format of trainer.json
_NOTHING = "Nothing is saved in {}. Train a model: mlxchat train"


def show_list(tag: str | None, json: bool) -> None:
    """Show what is saved."""
    found = _find(tag)
    if json:
        say(json_format.dumps([{**asdict(saved), "path": str(saved.path)} for saved in found]))
        return
    if not found:
        say(_NOTHING.format(Home.from_environment().root))
        return
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
    folders = _folders(tag, step, checkpoint)
    faults = {}
    with Screen(stream=sys.stderr) as screen:
        for folder in folders:
            faults[folder] = _fault(folder, screen)
    if json:
        say(json_format.dumps([{"path": str(f), "fault": fault} for f, fault in faults.items()]))
    elif not folders:
        say(_NOTHING.format(Home.from_environment().root))
    else:
        for folder, fault in faults.items():
            say(fault or f"{folder} is intact.")
    if any(faults.values()):
        raise typer.Exit(1)


def prune(tag: str | None, keep: int, dry_run: bool, json: bool) -> None:
    """Remove all but the newest steps of one run or of all, where the newest one is intact.

    A run that was not named is left out while it is trained, and where its newest step is not
    intact or an old one cannot be removed; exit code 1 after the latter two.
    """
    home = Home.from_environment()
    removed: list[SavedStep] = []
    faults: dict[Path, str] = {}
    with Screen(stream=sys.stderr) as screen:
        for name in dict.fromkeys(saved.tag for saved in _find(tag)):
            try:
                _prune(home.run(name), keep, dry_run, removed, screen)
            except MlxchatError as error:
                if tag is not None:
                    raise
                screen.show(Noted(time.time(), f"{error.problem} {error.remedy}"))
                if not isinstance(error, store.LockedError):
                    faults[home.run(name)] = error.problem
    freed = sum(saved.bytes for saved in removed)
    if json:
        paths = [str(saved.path) for saved in removed]
        left = [{"path": str(run), "fault": fault} for run, fault in faults.items()]
        said = {"removed": paths, "bytes": freed, "dry_run": dry_run, "left_out": left}
        say(json_format.dumps(said))
    else:
        for saved in removed:
            say(f"{saved.tag}, step {saved.step:,}: {amount(saved.bytes, 'bytes')}")
        done = "would be removed" if dry_run else "removed"
        say(f"{amount(len(removed), 'steps')} {done}, {amount(freed, 'bytes')}.")
    if faults:
        raise typer.Exit(1)


def _prune(run: Path, keep: int, dry_run: bool, removed: list[SavedStep], screen: Screen) -> None:
    """Remove the old steps of a run; those that are gone by then are added to ``removed``.

    Raises:
        MlxchatError: the run is being trained, its newest step is not intact, or an old one cannot
            be removed.
    """
    with store.locked(run):
        saved = saved_steps([run.parent], run.name)
        old = saved[:-keep]
        if old:
            _require_prunable(saved[-1].path, screen)
        try:
            if not dry_run:
                store.prune(run, keep)
        finally:
            removed += [step for step in old if dry_run or not step.path.exists()]


def _require_prunable(folder: Path, screen: Screen) -> None:
    """Check every file of a run's newest step.

    Raises:
        MlxchatError: as `_require_intact`; another where the step cannot have checksums.
    """
    if _without_checksums(folder):
        raise MlxchatError(
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
    return earlier and not (folder / checksums.FILE).exists()


def _find(tag: str | None) -> list[SavedStep]:
    """What is saved of a run or of all.

    Raises:
        MlxchatError: there is no such run; those that there are are named.
    """
    stages = Home.from_environment().stages
    if tag is not None:
        store.find(stages, tag, None)
    return saved_steps(stages, tag)


def _folders(tag: str | None, step: int | None, checkpoint: Path | None) -> list[Path]:
    """The steps to verify: that one, those of a run, or all."""
    if checkpoint is not None:
        if not checkpoint.is_dir():
            raise MlxchatError(f"There is no directory {checkpoint}.", "Give a model's directory.")
        steps = [store.directory(checkpoint, number) for number in store.steps(checkpoint)]
        return steps or [checkpoint]
    if step is not None:
        return [store.find(Home.from_environment().stages, tag, step)]
    return [saved.path for saved in _find(tag)]


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
    paths = [folder / name for name in checksums.names(folder)]
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    task, before = f"{folder.parent.name}/{folder.name}", 0
    for path, size in zip(paths, sizes, strict=True):

        def report(done: int, before: int = before) -> None:
            now = time.time()
            screen.show(Progressed(now, task, before + done, sum(sizes), "bytes"))

        checksums.check(path, report)
        before += size
