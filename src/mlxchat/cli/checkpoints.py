"""What `mlxchat checkpoints` does: shows, checks and removes saved steps. Needs no arrays."""

import json as json_format
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from mlxchat.checkpoint import catalog, store
from mlxchat.checkpoint.catalog import SavedStep, saved_steps
from mlxchat.checkpoint.store import Removed
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted, Progressed
from mlxchat.ui.console import Screen, say, table, warning
from mlxchat.ui.text import amount

DATE = "%Y-%m-%d %H:%M"
_NOTHING = "Nothing is saved in {}. Train a model: mlxchat train"


def show_list(tag: str | None, json: bool) -> None:
    """Show what is saved; exit code 1 where some of it cannot be read."""
    faults: list[MlxchatError] = []
    stages = Home.from_environment().stages
    found = saved_steps(catalog.named_runs(stages, tag), faults.append)
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
    stages, faults = Home.from_environment().stages, dict[Path, str | None]()

    def unread(run: Path, error: MlxchatError) -> None:
        faults[run] = error.problem

    with Screen(stream=sys.stderr) as screen:
        if step is not None:
            folders = [catalog.find(stages, tag, step)]
        else:
            folders = catalog.steps_to_verify(stages, tag, checkpoint, unread)
        for folder in folders:
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
        for run in catalog.runs_to_prune(Home.from_environment().stages, tag):
            try:
                store.prune_verified(run, keep, dry_run, removed.append, _progress(screen))
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


def _fault(folder: Path, screen: Screen) -> str | None:
    try:
        store.verify(folder, _progress(screen))
    except MlxchatError as error:
        return error.problem
    return None


def _progress(screen: Screen) -> Callable[[Path, int, int], None]:
    """Return what shows how much of a step has been verified."""

    def report(folder: Path, done: int, total: int) -> None:
        task = f"{folder.parent.name}/{folder.name}"
        screen.show(Progressed(time.time(), task, done, total, "bytes"))

    return report
