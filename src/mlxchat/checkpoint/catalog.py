"""What is saved: the runs, their steps, and the one that is meant; read without arrays."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxchat.checkpoint import store
from mlxchat.checkpoint.files import entries, is_folder, unreadable
from mlxchat.errors import MlxchatError, NotFound

CONFIG = "config.json"
TRAINER = "trainer.json"
QUANTIZATION = "quantization"  # in config.json, where mlx-lm has it


@dataclass(frozen=True)
class SavedStep:
    """A saved step of a run."""

    tag: str
    step: int
    path: Path
    bytes: int
    saved: float  # seconds since the epoch
    bits: int | None  # of most weights, where the model is quantized
    trainable: bool  # whether a run can go on from it


def runs(stages: Iterable[Path]) -> list[Path]:
    """The folders of all runs, by name: links to a disk that is not there too.

    Args:
        stages: the folders that they are in, such as `Home.stages`.

    Raises:
        MlxchatError: one of those cannot be read.
    """
    found = []
    for stage in stages:
        try:
            found += [path for path in entries(stage) if is_folder(path)]
        except OSError as error:
            raise unreadable(stage, error) from error
    return sorted(found, key=lambda run: run.name)


def find(stages: Sequence[Path], tag: str | None, step: int | None) -> Path:
    """The directory of a saved step.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        tag: of the run; None for the one saved last.
        step: None for the newest.

    Raises:
        MlxchatError: there is none, the message names those that there are, or how to make one; or
            it cannot be read.
    """
    newest = dict(newest_steps(stages, tag))
    if not newest:
        raise NotFound(
            f"There is no trained model in {' or '.join(map(str, stages))}.",
            "Make one: mlxchat quickstart, or mlxchat train",
        )
    name = tag or max(newest, key=lambda name: newest[name].stat().st_mtime)
    if name not in newest:
        raise NotFound(
            f"There is no trained model called {name}.", f"There are: {', '.join(sorted(newest))}."
        )
    if step is None:
        return newest[name]
    run = newest[name].parent
    if step not in store.steps(run):
        listed = ", ".join(str(number) for number in store.steps(run))
        raise NotFound(f"{name} has no saved step {step}.", f"It has: {listed}.")
    return store.directory(run, step)


def find_model(stages: Sequence[Path], source: str | None, step: int | None) -> Path:
    """The directory of a model that is named by its run or by its directory, or a run's.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        source: a run's name before a directory's; None for the run saved last.
        step: None for the newest.

    Raises:
        MlxchatError: there is none, or it cannot be read.
    """
    folder = Path(source or "").expanduser().resolve()
    if source is None or source in {run.name for run in runs(stages)} or not folder.is_dir():
        return find(stages, source, step)
    if step is not None:
        return find([folder.parent], folder.name, step)
    return store.latest(folder) or folder


def newest_steps(stages: Iterable[Path], tag: str | None = None) -> Iterator[tuple[str, Path]]:
    """The newest step of each run, by name; one that cannot be read is an error if asked for."""
    for run in runs(stages):
        try:
            newest = store.latest(run)
        except MlxchatError:
            if run.name == tag:
                raise
            continue
        if newest is not None:
            yield run.name, newest


def saved_steps(runs: Iterable[Path], fault: Callable[[MlxchatError], None]) -> list[SavedStep]:
    """The steps of runs, run by run in ascending order, without those removed meanwhile.

    Args:
        runs: their folders.
        fault: is told of each folder, of a run or a step, that cannot be read.
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
    saved, size, bits = folder.stat().st_mtime, store.size(folder), _bits(folder)
    trainable = bits is None and (folder / TRAINER).exists()
    return SavedStep(run.name, step, folder, size, saved, bits, trainable)


def _bits(folder: Path) -> int | None:
    """None also where the file cannot be read: checking it is not for a list."""
    try:
        fields = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    entry = fields.get(QUANTIZATION) if isinstance(fields, dict) else None
    bits = entry.get("bits") if isinstance(entry, dict) else None
    return bits if isinstance(bits, int) else None
