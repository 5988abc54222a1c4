"""The model that an adapter belongs to: how it is named, found, and kept from being removed.

An adapter's step has ``base.json`` in place of a whole model: the run and the step, the directory
where they were, and the checksums of the weights, which alone decide. A run that was renamed or a
home that was moved is found by them.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mlxchat.checkpoint.files import (
    CHECKSUMS,
    entries,
    files_with_checksums,
    model_files,
    read_record,
    sha256_of,
)
from mlxchat.errors import CheckpointError, MlxchatError, command
from mlxchat.home import STAGE_FOLDERS, Home
from mlxchat.telemetry.events import Count

BASE_FILE = "base.json"


class BaseRecord(BaseModel):
    """The contents of base.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    step: Count
    folder: str  # where it was
    weights: dict[str, str]  # sha256 of each weight file

    def write(self, folder: Path) -> None:
        """Write it into an adapter's directory."""
        (folder / BASE_FILE).write_text(self.model_dump_json(indent=2), "utf-8")


def is_adapter(folder: Path) -> bool:
    """Tell whether a directory holds an adapter in place of a whole model."""
    return (folder / BASE_FILE).exists()


def read_base_record(folder: Path) -> BaseRecord:
    """Read which model the adapter in a directory was trained on.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    record = read_record(folder / BASE_FILE, BaseRecord)
    if record is None:
        raise CheckpointError(
            f"{folder} does not say which model its adapter belongs to: {BASE_FILE} is missing.",
            "Copy it again from the original.",
        )
    return record


def checksums_of_weights(folder: Path) -> dict[str, str]:
    """Return the sha256 of each weight file of a model, by the file's name.

    They are those in its list of checksums; where it has none, the files are read.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    listed = files_with_checksums(folder) if (folder / CHECKSUMS).exists() else {}
    return {file.name: listed.get(file.name) or sha256_of(file) for file in model_files(folder)}


def size_of_weights(folder: Path) -> int:
    """Return the bytes of a model's weight files; one that is missing counts nothing.

    Raises:
        CheckpointError: their index is damaged.
    """
    return sum(file.stat().st_size for file in model_files(folder) if file.exists())


def require_base(folder: Path) -> Path:
    """Return the directory of the model that the adapter in a directory was trained on.

    It is looked for where it was, and in the home that the adapter is in; that of an adapter which
    is in none is ``$MLXCHAT_HOME``.

    Raises:
        CheckpointError: that model is nowhere to be found, or has other weights now.
    """
    record = read_base_record(folder)
    home = _home_of(folder)
    name = f"step_{record.step:06d}"
    named = [home / stage / record.run / name for stage in STAGE_FOLDERS.values()]
    changed = None
    for place in (*named, Path(record.folder), *_steps(home)):
        if is_adapter(place) or not place.is_dir():
            continue
        if _has_weights(place, record.weights):
            return place
        changed = changed or (place if place in (*named, Path(record.folder)) else None)
    model = f"{record.run}, step {record.step:,}"
    if changed:
        raise CheckpointError(
            f"{folder} is an adapter of {model}, but the weights in {changed} are different.",
            "Restore the model that it was trained on. On any other, an adapter does nothing "
            "sensible.",
        )
    elsewhere = command("import", folder, onto="DIR")
    raise CheckpointError(
        f"{folder} is an adapter of {model}, which is neither in {home} nor in {record.folder}.",
        f"Restore that model, or, if it is in another directory: {elsewhere}",
    )


def needed_weights(home: Path) -> set[frozenset[tuple[str, str]]]:
    """Return the checksums of the models that adapters in a home need.

    An adapter whose file cannot be read needs none.
    """
    needed = set()
    for step in _steps(home):
        try:
            record = read_record(step / BASE_FILE, BaseRecord)
        except MlxchatError:
            continue
        if record is not None:
            needed.add(frozenset(record.weights.items()))
    return needed


def is_needed(folder: Path, needed: set[frozenset[tuple[str, str]]]) -> bool:
    """Tell whether the model in a step is among those that adapters need."""
    return bool(needed) and any(_has_weights(folder, dict(weights)) for weights in needed)


def _home_of(folder: Path) -> Path:
    """Return the home that a step is in; the usual one if it is in none."""
    runs = folder.resolve().parent.parent
    return runs.parent if runs.name in STAGE_FOLDERS.values() else Home.from_environment().root


def _has_weights(folder: Path, weights: dict[str, str]) -> bool:
    try:
        return checksums_of_weights(folder) == weights
    except (MlxchatError, OSError):
        return False


def _steps(home: Path) -> Iterator[Path]:
    """Yield the checkpoints of all runs in a home."""
    for stage in STAGE_FOLDERS.values():
        for run in _below(home / stage):
            yield from sorted(step for step in _below(run) if step.name.startswith("step_"))


def _below(folder: Path) -> list[Path]:
    try:
        return [path for path in entries(folder) if path.is_dir()]
    except OSError:
        return []
