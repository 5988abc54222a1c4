"""Finds checkpoints: all of them, those of a run, or the one that a name stands for.

Nothing here reads arrays or imports MLX.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlxchat.checkpoint import store
from mlxchat.checkpoint.bases import BASE_FILE
from mlxchat.checkpoint.best import EvaluatedStep, best_step, evaluated_steps
from mlxchat.checkpoint.files import (
    CONFIG,
    HISTORY,
    LONGEST,
    QUANTIZATION,
    READABLE_FORMATS,
    TRAINER,
    entries,
    is_folder,
    one_line,
    read_json,
    unreadable,
)
from mlxchat.checkpoint.stamp import saved_at
from mlxchat.errors import MlxchatError, NotFound
from mlxchat.home import Home, expanded

CLEARLY_WORSE = 1.005  # times the bits per byte of the best step
SET_ASIDE = re.compile(r"\.(good|old)[0-9]+$")  # ends the name of a run that was set aside


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint of a run."""

    tag: str
    step: int
    path: Path
    bytes: int
    saved: float  # seconds since the epoch
    bits: int | None  # of most weights; None if the model is not quantized
    base: str | None  # the run of the model that it is an adapter on; None if the model is whole
    trainable: bool  # whether training can resume from it


def runs(stages: Iterable[Path]) -> list[Path]:
    """Return the folders of all runs, sorted by name, broken links included.

    Args:
        stages: the folders of runs, such as `Home.stages`.

    Raises:
        MlxchatError: one of those folders cannot be read.
    """
    found = []
    for stage in stages:
        try:
            found += [path for path in entries(stage) if is_folder(path)]
        except OSError as error:
            raise unreadable(stage, error) from error
    return sorted(found, key=lambda run: run.name)


def find(stages: Sequence[Path], tag: str | None, step: int | None) -> Path:
    """Return the directory of a checkpoint.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        tag: the run's name; None for the run saved last (`last_saved`).
        step: the step; None for the newest.

    Raises:
        NotFound: there is no such run or step; the message lists what there is.
        MlxchatError: it cannot be read.
    """
    newest = dict(newest_steps(stages, tag))
    chosen = newest.get(tag) if tag else last_saved(stages)
    if not newest or (tag is None and chosen is None):
        raise NotFound(
            f"There is no trained model in {_common(stages)} yet.",
            "Make one: mlxchat quickstart, or mlxchat train",
        )
    if chosen is None:
        raise NotFound(
            f"There is no trained model called {one_line(tag or '')}.",
            f"There are: {one_line(', '.join(sorted(newest)), 5 * LONGEST)}.",
        )
    if step is None:
        return chosen
    run = chosen.parent
    if step not in store.steps(run):
        listed = ", ".join(str(number) for number in store.steps(run))
        raise NotFound(f"{run.name} has no checkpoint of step {step}.", f"It has: {listed}.")
    return store.directory(run, step)


def _common(stages: Sequence[Path]) -> Path:
    """Return the folder of all these folders, for a message that does not list them."""
    return stages[0].parent if len(stages) > 1 else stages[0]


def locate(stages: Sequence[Path], tag: str | None, step: int | None, folder: Path | None) -> Path:
    """Return the directory of a saved model that is named by its run or by its directory.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        tag: the run's name; None for the run saved last.
        step: a checkpoint of that run; None for the newest.
        folder: a model's directory, or a run's folder (its newest step), in place of a name.

    Raises:
        NotFound: there is no such run, step or directory.
        MlxchatError: it cannot be read.
    """
    if folder is None:
        return find(stages, tag, step)
    if not folder.is_dir():
        raise NotFound(f"There is no directory {folder}.", "Give a model's directory.")
    return store.latest(folder) or folder


def find_model(stages: Sequence[Path], source: str | None, step: int | None) -> Path:
    """Return the directory of a model that is named by a run, a run's folder or its directory.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        source: a run's name or, if no run has that name, a path; None for the run saved last.
        step: a checkpoint of the run; None for the newest.

    Raises:
        NotFound: there is no such model.
        MlxchatError: it cannot be read.
    """
    folder = expanded(source or "").resolve()
    if source is None or source in {run.name for run in runs(stages)} or not folder.is_dir():
        return find(stages, source, step)
    if step is not None:
        return find([folder.parent], folder.name, step)
    return store.latest(folder) or folder


def better_than_newest(run: Path) -> tuple[EvaluatedStep, EvaluatedStep] | None:
    """Return the best checkpoint of a run and the newest one, if the newest is clearly worse.

    Raises:
        MlxchatError: the run cannot be read.
    """
    saved = store.require_steps(run)
    if not saved:
        return None
    newest = store.directory(run, saved[-1])
    best, last = best_step(newest, saved), evaluated_steps(newest, saved[-1:])
    if best and last and last[0].bits_per_byte > CLEARLY_WORSE * best.bits_per_byte:
        return best, last[0]
    return None


def steps_to_verify(
    stages: Sequence[Path],
    tag: str | None,
    folder: Path | None,
    fault: Callable[[Path, MlxchatError], None],
) -> list[Path]:
    """Return the steps of a run or of all runs, or a model's directory.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        tag: the run's name; None for all runs.
        folder: a run's folder or a model's directory, in place of a name.
        fault: called with each run that cannot be read, and why.

    Raises:
        NotFound: there is no such run or directory.
    """
    if folder is not None and not folder.is_dir():
        raise NotFound(f"There is no directory {folder}.", "Give a model's directory.")
    found, failed = [], False
    for run in [folder] if folder else named_runs(stages, tag):
        try:
            found += [store.directory(run, step) for step in store.require_steps(run)]
        except MlxchatError as error:
            failed = True
            fault(run, error)
    return [folder] if folder and not found and not failed else found


def named_runs(stages: Sequence[Path], tag: str | None) -> list[Path]:
    """Return the folder of the run called ``tag``, or those of all runs.

    Raises:
        NotFound: no run of that name has a checkpoint; the message lists the names.
        MlxchatError: a folder cannot be read.
    """
    found = [run for run in runs(stages) if tag in (None, run.name)]
    if tag is not None and not any(store.require_steps(run) for run in found):
        find(stages, tag, None)
    return found


def runs_to_prune(stages: Sequence[Path], tag: str | None) -> list[Path]:
    """Return `named_runs`, or a run without a step in which a killed process left files.

    Raises:
        MlxchatError: as `named_runs`.
    """
    left = [run for run in runs(stages) if run.name == tag and store.unfinished(run)]
    return left or named_runs(stages, tag)


def newest_steps(stages: Iterable[Path], tag: str | None = None) -> Iterator[tuple[str, Path]]:
    """Yield the name and the newest step of each run.

    Runs that cannot be read are skipped, except the one called ``tag``.

    Raises:
        MlxchatError: the run called ``tag`` cannot be read.
    """
    for run in runs(stages):
        try:
            newest = store.latest(run)
        except MlxchatError:
            if run.name == tag:
                raise
            continue
        if newest is not None:
            yield run.name, newest


def last_saved(
    stages: Sequence[Path], suits: Callable[[Path], bool] = lambda _: True
) -> Path | None:
    """Return the newest step of the run that was saved last; None if there is none.

    The time that each step stores is compared. But a fine-tuned model comes before the one that it
    began with, even if that was saved again since.

    Args:
        stages: the folders of runs, such as `Home.stages`, the later ones last.
        suits: whether a step can be chosen.
    """
    candidates = []
    for stage, folder in enumerate(stages):
        for name, newest in newest_steps([folder]):
            with suppress(OSError):  # it was removed meanwhile
                if suits(newest):
                    original = SET_ASIDE.search(name) is None
                    candidates.append(_Candidate(_saved_at(newest), stage, original, name, newest))
    if not candidates:
        return None
    last = max(candidates)
    while tuned := [other for other in candidates if other.was_tuned_from(last)]:
        last = max(tuned)
    return last.folder


class _Candidate(NamedTuple):
    """The newest step of a run, which is compared by the first fields in which it differs."""

    saved: float
    stage: int
    original: bool  # not set aside
    name: str
    folder: Path

    def was_tuned_from(self, other: "_Candidate") -> bool:
        """Return whether it was tuned from the other's run, and that was not restarted since."""
        if self.stage <= other.stage or _field(self.folder / HISTORY, "tag") != other.name:
            return False
        step = _field(self.folder / HISTORY, "step")
        return isinstance(step, int) and step <= store.step_of(other.folder)


def _saved_at(folder: Path) -> float:
    """Return when a step of a run was saved.

    Raises:
        OSError: it cannot be read.
    """
    run = folder.parent
    return saved_at(folder, store.step_of(folder), Home(run.parent.parent).log(run.name))


def saved_steps(runs: Iterable[Path], fault: Callable[[MlxchatError], None]) -> list[SavedStep]:
    """Return the checkpoints of runs, in ascending order within a run.

    Steps that are removed meanwhile are skipped.

    Args:
        runs: the folders of the runs.
        fault: called with the error for each run or step that cannot be read.
    """
    found = []
    for run in runs:
        try:
            numbers = store.steps(run)
        except OSError as error:
            fault(unreadable(run, error))
            continue
        for step in numbers:
            folder = store.directory(run, step)
            try:
                found.append(_saved_step(run, step, folder))
            except OSError as error:
                if is_folder(folder):
                    fault(unreadable(folder, error))
    return found


def _saved_step(run: Path, step: int, folder: Path) -> SavedStep:
    saved, size, bits = _saved_at(folder), store.size(folder), quantized_bits(folder)
    base = _field(folder / BASE_FILE, "run")
    named = one_line(base, LONGEST) if isinstance(base, str) else None
    trainable = bits is None and _field(folder / TRAINER, "format") in READABLE_FORMATS
    return SavedStep(run.name, step, folder, size, saved, bits, named, trainable)


def quantized_bits(folder: Path) -> int | None:
    """Return the bits of most weights of a model.

    None if it is not quantized, and also if its config.json cannot be read.
    """
    entry = _field(folder / CONFIG, QUANTIZATION)
    bits = entry.get("bits") if isinstance(entry, dict) else None
    return bits if type(bits) is int else None


def _field(path: Path, name: str) -> object:
    """Return an entry of a JSON file; None if there is none, or the file cannot be read."""
    try:
        return read_json(path).get(name)
    except MlxchatError:
        return None
