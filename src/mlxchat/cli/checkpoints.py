"""What `mlxchat checkpoints` does: shows, checks and removes saved steps. Needs no arrays."""

import json as json_format
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import typer

from mlxchat.ckpt import checksums, store
from mlxchat.ckpt.catalog import SavedStep, saved_steps
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry import Noted, Progressed
from mlxchat.ui.bars import amount
from mlxchat.ui.console import Screen, say, table

DATE = "%Y-%m-%d %H:%M"
_NOTHING = "Nothing is saved in {}. Train a model: mlxchat train"


def show_list(tag: str | None, json: bool) -> None:
    """Show what is saved."""
    found = _find(tag)
    if json:
        say(json_format.dumps([{**asdict(saved), "path": str(saved.path)} for saved in found]))
        return
    if not found:
        say(_NOTHING.format(Home.from_environment().runs))
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
        say(_NOTHING.format(Home.from_environment().runs))
    else:
        for folder, fault in faults.items():
            say(fault or f"{folder} is intact.")
    if any(faults.values()):
        raise typer.Exit(1)


def prune(tag: str | None, keep: int, dry_run: bool, json: bool) -> None:
    """Remove all but the newest steps of one run or of all, where the newest one is intact.

    A run that is being trained is left out, unless it is the one that was named: an error then.
    """
    runs = Home.from_environment().runs
    removed: list[SavedStep] = []
    with Screen(stream=sys.stderr) as screen:
        for name in dict.fromkeys(saved.tag for saved in _find(tag)):
            with ExitStack() as stack:
                try:
                    stack.enter_context(store.locked(runs / name))
                except MlxchatError as error:
                    if tag is not None:
                        raise
                    screen.show(Noted(time.time(), error.problem))
                    continue
                *earlier, newest = saved_steps(runs, name)
                old = [*earlier, newest][:-keep]
                if old:
                    _require_intact(newest.path, screen)
                if not dry_run:
                    store.prune(runs / name, keep)
                removed += old
    freed = sum(saved.bytes for saved in removed)
    if json:
        paths = [str(saved.path) for saved in removed]
        say(json_format.dumps({"removed": paths, "bytes": freed, "dry_run": dry_run}))
        return
    for saved in removed:
        say(f"{saved.tag}, step {saved.step:,}: {amount(saved.bytes, 'bytes')}")
    said = "would be removed" if dry_run else "removed"
    say(f"{amount(len(removed), 'steps')} {said}, {amount(freed, 'bytes')}.")


def _find(tag: str | None) -> list[SavedStep]:
    """What is saved of a run or of all.

    Raises:
        MlxchatError: there is no such run; those that there are are named.
    """
    runs = Home.from_environment().runs
    if tag is not None:
        store.find(runs, tag, None)
    return saved_steps(runs, tag)


def _folders(tag: str | None, step: int | None, checkpoint: Path | None) -> list[Path]:
    """The steps to verify: that one, those of a run, or all."""
    if checkpoint is not None:
        if not checkpoint.is_dir():
            raise MlxchatError(f"There is no directory {checkpoint}.", "Give a model's directory.")
        steps = [store.directory(checkpoint, number) for number in store.steps(checkpoint)]
        return steps or [checkpoint]
    if step is not None:
        return [store.find(Home.from_environment().runs, tag, step)]
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
