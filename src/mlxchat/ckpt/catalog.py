"""What is saved: the steps of all runs with their sizes, read without arrays."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlxchat.ckpt import store

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


def saved_steps(stages: Sequence[Path], tag: str | None = None) -> list[SavedStep]:
    """The steps of one run or of all, by name and number, without those removed meanwhile.

    Args:
        stages: the folders of runs, such as `Home.stages`.
        tag: of the run; None for all.
    """
    runs = (path for stage in stages for path in stage.glob("*") if path.is_dir())
    wanted = [run for run in runs if tag in (None, run.name)]
    found = []
    for run in sorted(wanted, key=lambda run: run.name):
        for step in store.steps(run):
            folder = store.directory(run, step)
            with suppress(FileNotFoundError):
                saved, size, bits = folder.stat().st_mtime, store.size(folder), _bits(folder)
                trainable = bits is None and (folder / TRAINER).exists()
                found.append(SavedStep(run.name, step, folder, size, saved, bits, trainable))
    return found


def _bits(folder: Path) -> int | None:
    """None also where the file cannot be read: checking it is not for a list."""
    try:
        fields = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    entry = fields.get(QUANTIZATION) if isinstance(fields, dict) else None
    bits = entry.get("bits") if isinstance(entry, dict) else None
    return bits if isinstance(bits, int) else None
