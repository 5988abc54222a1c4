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
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Noted, Progressed
from mlxchat.ui.console import Screen, say, say_json, table, warning
from mlxchat.ui.text import amount

DATE = "%Y-%m-%d %H:%M"
_NOTHING = "{} has no saved steps. Train a model: mlxchat train"


def list_command(model_tag: AnyTag = None, json: Json = False) -> None:
    """Show the saved steps of all runs, quantized copies and adapters included, and their sizes.

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
        int | None, typer.Option(help="Saved step. Default: all of them.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = None,
    json: Json = False,
) -> None:
    """Compare every file with its checksum.

    Exits with code 1 if a file differs from what was saved. Models are also checked
    whenever they are loaded. Progress goes to standard error.
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
        int, typer.Option(min=1, help="Newest steps of each run to keep, beside the best.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove all but the newest steps of each run, once the newest one is found intact.

    The step with the lowest bits per byte is kept, too. Unfinished steps that
    killed processes left behind are removed. Without --model-tag, runs that are
    being trained are skipped, and so, with exit code 1, are runs whose newest
    step is damaged or whose old steps cannot be removed.
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
    freed = sum(saved.bytes for saved in removed)
    if json:
        paths = [str(saved.path) for saved in removed]
        left = [{"path": str(run), "fault": fault} for run, fault in faults.items()]
        facts = {"removed": paths, "bytes": freed, "dry_run": dry_run, "left_out": left}
        say_json(facts)
    else:
        for saved in removed:
            step = "unfinished" if saved.step is None else f"step {saved.step:,}"
            say(f"{saved.tag}, {step}: {amount(saved.bytes, 'bytes')}")
        done = "would be removed" if dry_run else "removed"
        count = sum(saved.step is not None for saved in removed)
        say(f"{amount(count, 'steps')} {done}, {amount(freed, 'bytes')}.")
    if faults:
        raise typer.Exit(1)


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
    say(f"{amount(len(found), 'steps')}, {amount(sum(saved.bytes for saved in found), 'bytes')}")


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
    """Return a function that shows how much of a step has been verified."""

    def report(folder: Path, done: int, total: int) -> None:
        task = f"{folder.parent.name}/{folder.name}"
        screen.show(Progressed(time.time(), task, done, total, "bytes"))

    return report
