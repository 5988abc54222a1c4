"""The commands `checkpoints list`, `verify` and `prune`; none of them reads arrays."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlxchat.checkpoint import catalog, pruning
from mlxchat.checkpoint.catalog import SavedStep, saved_steps
from mlxchat.checkpoint.pruning import Removed
from mlxchat.cli.options import AnyTag, Checkpoint, Json, require_one_place
from mlxchat.disk import disk_use
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted, Progressed
from mlxchat.ui.console import Screen, say, say_json, table, warning
from mlxchat.ui.text import amount, with_total

DATE = "%Y-%m-%d %H:%M"
_NOTHING = "There are no checkpoints in {}. Train a model: mlxchat train"


def list_command(model_tag: AnyTag = None, json: Json = False) -> None:
    """Show the checkpoints of all runs and their sizes, including quantized copies and adapters.

    Exits with code 1 if some of them cannot be read.
    """
    faults: list[MlxchatError] = []
    stages = Home.from_environment().stages
    found = saved_steps(catalog.named_runs(stages, model_tag), faults.append)
    for fault in faults:
        warning(f"{fault.problem} {fault.remedy}")
    if json:
        say_json([{**asdict(saved), "path": str(saved.path)} for saved in found])
    elif found:
        _show_table(found)
    elif not faults:
        say(_NOTHING.format(Home.from_environment().root))
    if faults:
        raise typer.Exit(1)


def verify_command(
    model_tag: AnyTag = None,
    step: Annotated[
        int | None,
        typer.Option(help="Step of the checkpoint to check. Default: all.", show_default=False),
    ] = None,
    checkpoint: Checkpoint = None,
    json: Json = False,
) -> None:
    """Verify the checksum of every file.

    Exits with code 1 if a file has changed since it was saved. Models are also checked whenever
    they are loaded. Progress goes to standard error.
    """
    require_one_place(model_tag, step, checkpoint)
    stages, faults = Home.from_environment().stages, dict[Path, str | None]()

    def unread(run: Path, error: MlxchatError) -> None:
        faults[run] = error.problem

    with Screen(stream=sys.stderr) as screen:
        if step is not None:
            folders = [catalog.find(stages, model_tag, step)]
        else:
            folders = catalog.steps_to_verify(stages, model_tag, checkpoint, unread)
        for folder in folders:
            faults[folder] = _fault(folder, screen)
    if json:
        say_json([{"path": str(f), "fault": fault} for f, fault in faults.items()])
    elif not faults:
        say(_NOTHING.format(Home.from_environment().root))
    else:
        for folder, fault in faults.items():
            say(fault or f"{folder} is intact.")
    if any(faults.values()):
        raise typer.Exit(1)


def prune_command(
    model_tag: AnyTag = None,
    keep: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of recent checkpoints of each run to keep, in addition to the best one.",
        ),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, without removing it.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove all but the newest checkpoints of each run, after checking that the newest is intact.

    The checkpoint with the lowest bits per byte is kept too. Incomplete checkpoints that killed
    processes left behind are removed. Without --model-tag, runs that are being trained are skipped.
    Runs whose newest checkpoint is damaged, or whose old ones cannot be removed, are skipped too,
    and the exit code is then 1.
    """
    removed: list[Removed] = []
    faults: dict[Path, str] = {}
    with Screen(stream=sys.stderr) as screen:
        for run in catalog.runs_to_prune(Home.from_environment().stages, model_tag):
            try:
                pruning.prune_verified(run, keep, dry_run, removed.append, _progress(screen))
            except MlxchatError as error:
                if model_tag is not None:
                    raise
                screen.show(Noted(time.time(), f"{error.problem} {error.remedy}"))
                if not isinstance(error, LockedError):
                    faults[run] = error.problem
    freed = _freed(removed, dry_run)
    if json:
        paths = [str(saved.path) for saved in removed]
        left = [{"path": str(run), "fault": fault} for run, fault in faults.items()]
        facts = {"removed": paths, "bytes": freed, "dry_run": dry_run, "left_out": left}
        say_json(facts)
    else:
        for saved in removed:
            step = "unfinished" if saved.step is None else f"step {saved.step:,}"
            say(f"{saved.tag}, {step}: {amount(saved.use.bytes, 'bytes')}")
        done = "would be removed and" if dry_run else "removed,"
        count = sum(saved.step is not None for saved in removed)
        say(f"{amount(count, 'checkpoints')} {done} {amount(freed, 'bytes')} freed.")
    if faults:
        raise typer.Exit(1)


def _freed(removed: Sequence[Removed], dry_run: bool) -> int:
    """Return the bytes that the disk has free again. What runs share goes with the last of them."""
    if dry_run:
        return disk_use(saved.path for saved in removed if not saved.path.is_symlink()).freed
    return sum(saved.use.freed for saved in removed)


def _show_table(found: Sequence[SavedStep]) -> None:
    table(
        ["run", "step", "MB", "trainable", "model", "saved"],
        [
            [
                saved.tag,
                saved.step,
                round(saved.bytes / 1e6, 1),
                "yes" if saved.trainable else "no",
                _model_in_words(saved),
                time.strftime(DATE, time.localtime(saved.saved)),
            ]
            for saved in found
        ],
    )
    total = disk_use(saved.path for saved in found).bytes
    say(with_total(amount(len(found), "checkpoints"), total, [saved.bytes for saved in found]))


def _model_in_words(saved: SavedStep) -> str:
    if saved.base is not None:
        return f"adapter on {saved.base}"
    return f"quantized, {saved.bits} bits" if saved.bits else "full precision"


def _fault(folder: Path, screen: Screen) -> str | None:
    try:
        pruning.verify(folder, _progress(screen))
    except MlxchatError as error:
        return error.problem
    return None


def _progress(screen: Screen) -> Callable[[Path, int, int], None]:
    """Return a function that shows how much of a checkpoint has been verified."""

    def report(folder: Path, done: int, total: int) -> None:
        task = f"{folder.parent.name}/{folder.name}"
        screen.show(Progressed(time.time(), task, done, total, "bytes"))

    return report
