"""Results on tasks, as `mlxchat eval chat` keeps them."""

from pathlib import Path
from typing import Any

from mlxchat.checkpoint import store
from mlxchat.checkpoint.task_results import KeptResults, TaskResult, results_file
from mlxchat.evaluate.pass_at_k import share_of
from mlxchat.home import Home

MEASURED = 1_795_900_000.0


def result(task: str = "arc-easy", right: int = 60, asked: int = 100, **given: Any) -> TaskResult:
    """A result on a task of four choices, unless something else is given."""
    interval = share_of(right, asked)
    fields = {"random": 0.25, "dtype": "float32", "time": MEASURED, "mlxchat": "0.2.0"}
    ends = {"low": interval.low, "high": interval.high}
    return TaskResult.model_validate(
        {"task": task, "right": right, "asked": asked, **ends, **fields, **given}
    )


def put_results(home: Home, tag: str, step: int, *results: TaskResult) -> Path:
    """Keep results of a checkpoint; return their file."""
    kept = KeptResults(results_file(home, tag, step, store.directory(home.run(tag), step)))
    for each in results:
        kept.add(each)
    assert kept.fault is None
    return kept.path
