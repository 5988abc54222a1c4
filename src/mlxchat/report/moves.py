"""Renames, copies and removes runs, so that a crash at any moment loses nothing.

A run is in several folders, which no system call renames together. So a rename first gives the log
a second place, then renames the folder of the checkpoints and what trackers have left beside the
log, and removes the first log last. After a crash the same command finishes the work: it sees two
logs with the same content. A copy's checkpoints come last, and whole.

A run that is being trained is locked, and left alone.
"""

import filecmp
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlxchat.checkpoint import store
from mlxchat.checkpoint.bases import BASE_FILE, BaseRecord, is_needed
from mlxchat.checkpoint.evaluation_files import rename_evaluations, renamed_evaluation
from mlxchat.checkpoint.files import read_record, unreadable
from mlxchat.checkpoint.run_names import refuse_other_spelling
from mlxchat.config.run import NAME_IN_WORDS, require_name
from mlxchat.disk import (
    DiskUse,
    disk_use,
    new_folder,
    open_regular,
    replacing,
    storing,
    sync,
)
from mlxchat.errors import CheckpointError, ConfigError, LockedError, MlxchatError, command
from mlxchat.home import Home
from mlxchat.report.places import RunPlaces, all_runs, find_run
from mlxchat.report.runs import RunSummary, Summaries, beginning_with
from mlxchat.telemetry.events import Progressed, Report

WAIT = "Wait for it to end, or stop it with Ctrl-C: it saves its work first."
LOG_FILES = ("metrics.jsonl", "status.json")
_ANOTHER_NAME = "choose another name"
_PERMITTED = "check who may write there, and repeat the same command"


def rename_run(home: Home, name: str, new: str) -> list[str]:
    """Rename a run: its checkpoints, its log and its evaluations.

    The settings in its checkpoints stay as they are: with its new name as ``model_tag``, the
    command that trained it resumes it. So do those of runs that began with its model.

    Returns:
        The names of those runs, whose settings have its earlier name.

    Raises:
        NotFound: there is no such run.
        ConfigError: the new name cannot be a folder's, or is another run's.
        LockedError: the run is being trained.
        DiskError: a folder cannot be renamed. The same command finishes the work.
    """
    _require_usable(home, new, apart_from=name)
    run = find_run(home, name)
    later = beginning_with(name, Summaries(home).all())
    with _held(home, run), _held(home, run, new), storing(f"The run {new}", _PERMITTED):
        begun = _begun(home, run, new)
        rename_evaluations(run.evaluations, run.name, new)
        if run.log and not begun:
            _copy_log(run.log, home.log(new).parent)
        if run.folder:
            run.folder.rename(run.folder.with_name(new))
            sync(run.folder.parent)
        if run.log:
            _move_rest(run.log, home.log(new).parent)
        for folder in _lockable(home, run):
            store.drop_lock_file(folder)
    return [one.name for one in later]


def copy_run(home: Home, name: str, new: str, report: Report = lambda _: None) -> None:
    """Copy a run, so that it can be trained on in two ways.

    Files of checkpoints never change, so the copy shares them on a disk with hard links: it takes
    no space until one of the two is trained further.

    Raises:
        NotFound: there is no such run.
        ConfigError: nothing of it is saved; or as `rename_run`.
        LockedError: the run is being trained.
        DiskError: the disk is full, or cannot be written.
    """
    _require_usable(home, new, apart_from=name)
    run = find_run(home, name)
    steps = store.require_steps(run.folder) if run.folder else []
    if run.folder is None or not steps:
        raise ConfigError(
            f"The run {name} has saved nothing, so there is nothing to copy.",
            f"Its log can be exported: {command('runs export', name)}",
        )
    with _held(home, run), _held(home, run, new), ExitStack() as undo:
        begun = _begun(home, run, new)
        with storing(home.base_evaluations, _ANOTHER_NAME):
            for path in run.evaluations:
                target = renamed_evaluation(path, run.name, new)
                _require_regular(path)
                with replacing(target) as partial:
                    shutil.copy2(path, partial)
                undo.callback(target.unlink)
        if run.log and not begun:
            undo.callback(shutil.rmtree, home.log(new).parent, ignore_errors=True)
            with storing(home.log(new).parent, _ANOTHER_NAME):
                _copy_log(run.log, home.log(new).parent)
        folder = run.folder.with_name(new)
        with new_folder(folder, _ANOTHER_NAME) as unfinished, storing(folder, _ANOTHER_NAME):
            copying = _Copying(name, disk_use([run.folder]).bytes, report)
            for step in steps:
                target = store.directory(unfinished, step)
                _copy_folder(store.directory(run.folder, step), target, copying.link_or_copy)
        undo.pop_all()


@dataclass(frozen=True)
class RunRemoval:
    """The consequences of removing a run.

    Attributes:
        run: the run.
        use: the bytes of its files; those that runs which are not removed share stay on the disk.
        continued: the runs that began with its model, and have weights of their own.
        adapters: the adapters on its model, whose weights another run has, too.
        others: files in its folder that no training wrote.
    """

    run: RunSummary
    use: DiskUse
    continued: tuple[str, ...]
    adapters: tuple[str, ...]
    others: tuple[str, ...]


def planned_removals(home: Home, names: Sequence[str]) -> list[RunRemoval]:
    """Return what removing runs would do.

    Raises:
        NotFound: there is no such run.
        CheckpointError: an adapter that is not removed as well needs the model of one of them.
        LockedError: one is being trained.
        MlxchatError: a folder of runs cannot be read.
    """
    chosen = [find_run(home, name) for name in dict.fromkeys(names)]
    summaries = Summaries(home)
    every = [summaries.read(places) for places in all_runs(home)]
    removals = []
    for places in chosen:
        with _held(home, places):
            _require_no_adapter_on(places, chosen, every)
        [run] = [run for run in every if run.name == places.name]
        later = [one for one in beginning_with(places.name, every) if one.name not in names]
        continued = tuple(one.name for one in later if one.model.base is None)
        adapters = tuple(one.name for one in later if one.model.base is not None)
        beside = [path for one in chosen if one != places for path in one.paths]
        use, others = disk_use(places.paths, beside), _others(places.folder)
        removals.append(RunRemoval(run, use, continued, adapters, others))
    return removals


def remove_run(home: Home, name: str) -> None:
    """Remove a run: its checkpoints, its evaluations and, last, its log.

    A crash leaves a run with fewer files, which can be removed again.

    Raises:
        NotFound: there is no such run.
        LockedError: it is being trained.
        DiskError: something cannot be removed.
    """
    run = find_run(home, name)
    with _held(home, run):
        with storing(f"The run {name} without its files", _PERMITTED):
            if run.folder:
                store.tidy(run.folder)
                for step in store.require_steps(run.folder):
                    path = store.directory(run.folder, step)
                    path.rename(path.with_name(f".unfinished_{step}"))
                store.tidy(run.folder)
            for path in run.evaluations:
                path.unlink(missing_ok=True)
            if run.folder:
                _remove_folder(run.folder)
            if run.log:
                _remove_folder(run.log)
        for folder in _lockable(home, run):
            store.drop_lock_file(folder)


# ==== Names ====


def _require_usable(home: Home, new: str, apart_from: str | None = None) -> None:
    """Check that a name can be a run's on any disk.

    Raises:
        ConfigError: it cannot, or differs from another run's in case only.
    """
    require_name(new, f"Use {NAME_IN_WORDS}.")
    if new == apart_from:
        raise ConfigError(f"The run is already called {new}.", "Choose another name.")
    folders = (*home.stages, home.root / "logs")
    refuse_other_spelling(folders, new, lambda _: "Choose another name.")


def _begun(home: Home, run: RunPlaces, new: str) -> bool:
    """Return whether an earlier attempt, which was cut short, has made the log of the new name.

    Raises:
        ConfigError: another run has that name.
    """
    taken = [other for other in all_runs(home) if other.name == new]
    if not taken:
        return False
    [other, *_] = taken
    one_saved = other.folder is None or run.folder is None
    if len(taken) == 1 and one_saved and run.log and other.log and _is_within(run.log, other.log):
        return True
    raise ConfigError(
        f"There is already a run called {new}: {other.folder or other.log}.",
        f"Choose another name, or remove that run: {command('runs remove', new)}",
    )


def _is_within(log: Path, other: Path) -> bool:
    """Return whether a log and its status are in another folder, too, with the same content."""
    there = [name for name in LOG_FILES if os.path.lexists(log / name)]
    same, _, _ = filecmp.cmpfiles(log, other, there, shallow=False)
    complete = LOG_FILES[0] in there or not any(log.iterdir())
    return complete and len(same) == len(there)


# ==== Locks ====


@contextmanager
def _held(home: Home, run: RunPlaces, name: str | None = None) -> Iterator[None]:
    """Keep others from writing to a run, or to one of another name in its stage.

    Raises:
        LockedError: another process uses it.
    """
    with ExitStack() as stack:
        for folder in _lockable(home, run):
            stack.enter_context(store.locked(folder.with_name(name or run.name), WAIT))
        if run.stage is None and Summaries(home).read(run).state == "running":
            raise LockedError(f"The run {run.name} is being trained.", WAIT)
        yield


def _lockable(home: Home, run: RunPlaces) -> list[Path]:
    """Return the folder whose lock is a run's; none if its stage is unknown."""
    if run.folder:
        return [run.folder]
    return [home.stage(run.stage) / run.name] if run.stage else []


# ==== Files ====


def _copy_log(log: Path, new: Path) -> None:
    """Copy a log and its status into a new folder, which appears whole or not at all.

    What trackers have left beside them is not copied: it says which run of theirs this one is.
    """
    with new_folder(new, _ANOTHER_NAME) as unfinished:
        for name in LOG_FILES:
            if os.path.lexists(log / name):
                _require_regular(log / name)
                shutil.copy2(log / name, unfinished / name)


def _move_rest(log: Path, new: Path) -> None:
    """Move what is beside a log that has been copied, and remove the log."""
    for path in log.iterdir():
        if path.name not in LOG_FILES:
            path.rename(new / path.name)
    sync(new)
    for name in reversed(LOG_FILES):
        (log / name).unlink(missing_ok=True)
    log.rmdir()
    sync(log.parent)


def _copy_folder(source: Path, target: Path, copy: Callable[[Path, Path], object]) -> None:
    """Copy a folder, in which there must be nothing but regular files and folders.

    Raises:
        CheckpointError: a file in it is something else, or cannot be read.
        OSError: the copy cannot be written.
    """
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _copy_folder(path, target / path.name, copy)
            continue
        _require_regular(path)
        copy(path, target / path.name)


def _require_regular(path: Path) -> None:
    """Raise `CheckpointError` for a pipe, a device, or a file that cannot be read."""
    try:
        open_regular(path).close()
    except OSError as error:
        raise unreadable(path, error) from error


class _Copying:
    """Copies files, by a hard link where the disk has them, and reports the progress."""

    def __init__(self, name: str, total: int, report: Report) -> None:
        self._name, self._total, self._report = name, total, report
        self._done = 0

    def link_or_copy(self, source: Path, target: Path) -> None:
        try:
            os.link(source, target)
        except OSError:  # a disk without links, or another disk
            shutil.copy2(source, target)
        self._done += target.stat().st_size
        self._report(Progressed(time.time(), self._name, self._done, self._total, "bytes"))


def _remove_folder(folder: Path) -> None:
    """Remove a folder, and what it links to if it is a link."""
    if not folder.is_symlink():
        shutil.rmtree(folder)
        return
    shutil.rmtree(folder.resolve())
    folder.unlink()


def _others(folder: Path | None) -> tuple[str, ...]:
    if folder is None:
        return ()
    ours = [store.directory(folder, step) for step in store.require_steps(folder)]
    ours += store.unfinished(folder)
    return tuple(sorted(path.name for path in folder.iterdir() if path not in ours))


def _require_no_adapter_on(
    places: RunPlaces, removed: Sequence[RunPlaces], every: Sequence[RunSummary]
) -> None:
    """Check that no adapter is left without the model that it is on.

    Raises:
        CheckpointError: one would be.
    """
    names = {run.name for run in removed}
    staying = [run for run in every if run.name not in names]
    for adapter, record in _adapters(staying):
        needed = {frozenset(record.weights.items())}
        if not any(is_needed(folder, needed) for folder in _step_folders(places)):
            continue
        if any(
            is_needed(folder, needed) for run in staying for folder in _step_folders(run.places)
        ):
            continue
        raise CheckpointError(
            f"{adapter} is an adapter on {places.name}, and is of no use without it.",
            f"Make a whole model of it first: {command('fuse', model_tag=adapter)}; or remove "
            f"both: {command('runs remove', places.name, adapter)}",
        )


def _adapters(runs: Sequence[RunSummary]) -> Iterator[tuple[str, BaseRecord]]:
    """Yield the name of each adapter's run, with what its steps say of the model below."""
    for run in runs:
        for folder in _step_folders(run.places):
            try:
                record = read_record(folder / BASE_FILE, BaseRecord)
            except MlxchatError:
                continue
            if record is not None:
                yield run.name, record


def _step_folders(places: RunPlaces) -> list[Path]:
    if places.folder is None:
        return []
    try:
        return [store.directory(places.folder, step) for step in store.steps(places.folder)]
    except OSError:
        return []
