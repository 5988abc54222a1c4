"""The scores of a checkpoint that `mlxchat eval base` has kept: right answers of each task."""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlxchat.evaluate.core_kept import read_verdicts
from mlxchat.evaluate.core_tasks import CORE_TASKS
from mlxchat.home import Home

_HASH = r"(_[0-9]+_per_task)?_[0-9a-f]{8}\.jsonl"  # the rest of the name of a file of verdicts


class TaskScore(NamedTuple):
    """A task of CORE, and how many of its examples were right."""

    task: str
    right: int
    examples: int

    @property
    def share(self) -> float:
        """The share of the examples that were right."""
        return self.right / self.examples


def kept_scores(home: Home, name: str, step: int, since: float) -> list[TaskScore]:
    """Return the scores of a checkpoint, of the evaluation with most examples; empty without one.

    Args:
        home: where they are.
        name, step: the run and its step.
        since: when that was saved, in seconds since the epoch: what is older was of another model
            of that name.
    """
    pattern = re.compile(re.escape(f"{name}_{step:06d}") + _HASH)
    best: dict[tuple[str, int], bool] = {}
    with suppress(OSError):
        for path in home.base_evaluations.iterdir():
            if pattern.fullmatch(path.name) and path.stat().st_mtime >= since:
                verdicts = _verdicts(path)
                best = verdicts if len(verdicts) > len(best) else best
    counts, right = Counter(task for task, _ in best), Counter[str]()
    for (task, _), was_right in best.items():
        right[task] += was_right
    return [TaskScore(task, right[task], counts[task]) for task in CORE_TASKS if counts[task]]


def _verdicts(path: Path) -> dict[tuple[str, int], bool]:
    verdicts, _ = read_verdicts(path)
    return verdicts
