"""What is saved: the steps of all runs with their sizes, read without arrays."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mlxchat.ckpt import store
from mlxchat.ckpt.folders import is_folder, unreadable
from mlxchat.errors import MlxchatError

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
