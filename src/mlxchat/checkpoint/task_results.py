"""The results of a model on tasks, as `mlxchat eval chat` keeps them: a file for each model.

The files are in `Home.chat_evaluations`, with names as `mlxchat.checkpoint.evaluation_files` tells.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from mlxchat.checkpoint.digests import ReportRead, model_digest
from mlxchat.checkpoint.files import entries, read_json_as, unreadable
from mlxchat.config.inference import TASK_NAMES
from mlxchat.counts import share_within
from mlxchat.disk import replacing, storing, sync
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.locks import Lock, in_use
from mlxchat.telemetry.events import Count, Time

LONGEST_WAIT = 5.0  # seconds, for others who write into the folder, some milliseconds each
_POLL = 0.02  # seconds between looks

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Word = Annotated[str, Field(min_length=1, max_length=100)]


class TaskResult(BaseModel):
    """The result of a model on all problems that it was asked of a task.

    Attributes:
        task: its name.
        right, asked: how many problems were answered correctly, of how many.
        low, high: the ends of the 95% interval of the share.
        random: the share that guessing gets right.
        max_problems: the limit that left out some of the task's problems; None if all were asked.
        max_tokens: the most tokens of a written answer; None if the letter was chosen.
        temperature: at which answers were written; None if the letter was chosen.
        dtype: the precision of the computation.
        time: when the last problem was answered, in seconds since the epoch.
        mlxchat: the version that asked.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: _Word
    right: Count
    asked: Annotated[int, Field(ge=1, lt=2**63)]
    low: _Share
    high: _Share
    random: Annotated[float, Field(ge=0, lt=1)]
    max_problems: Count | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    dtype: _Word
    time: Time
    mlxchat: _Word

    @model_validator(mode="after")
    def _consistent(self) -> "TaskResult":
        if self.right > self.asked:
            raise ValueError(f"{self.right} of {self.asked} problems cannot be right")
        return self

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.asked

    @property
    def centered(self) -> float:
        """The share rescaled so that guessing is 0 and all right 1."""
        return (self.share - self.random) / (1 - self.random)

    @property
    def settings(self) -> tuple[object, ...]:
        """The settings of this result; a later result of equal ones takes its place."""
        return self.task, self.max_problems, self.max_tokens, self.temperature, self.dtype

    @property
    def interval(self) -> str:
        """The share with its interval, such as ``62.0% (58.0% to 65.9%)``."""
        return share_within(self.share, (self.low, self.high))


class _File(BaseModel):
    """The contents of a file of results."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    results: tuple[TaskResult, ...]


_FILE: TypeAdapter[_File] = TypeAdapter(_File)


def results_file(
    home: Home, name: str, step: int, folder: Path, report: ReportRead = lambda done, total: None
) -> Path:
    """Return the path of the file for a model's results, which need not exist.

    Args:
        home: where the results of all models are.
        name, step: the model's; see `mlxchat.checkpoint.history.tag_and_step`.
        folder: its directory.
        report: receives the progress, if the directory has no checksums and its files are read.

    Raises:
        MlxchatError: a file of the model cannot be read, or its list of checksums is damaged.
    """
    return home.chat_evaluations / f"{name}_{step:06d}_{model_digest(folder, report)}.json"


def read_results(path: Path) -> tuple[TaskResult, ...]:
    """Return the results in a file, in the order of their tasks; none if there is no file.

    Raises:
        CheckpointError: it is damaged, or of a later version.
    """
    return read_json_as(path, _FILE).results if path.exists() else ()


def results_of(home: Home, name: str, step: int, folder: Path) -> tuple[TaskResult, ...]:
    """Return the results of a model that have been kept.

    Args:
        home, name, step, folder: as `results_file` has them.

    Raises:
        MlxchatError: the file with them, or one of the model, cannot be read.
    """
    beginning = f"{name}_{step:06d}_"
    try:
        kept = any(path.name.startswith(beginning) for path in entries(home.chat_evaluations))
    except OSError as error:
        raise unreadable(home.chat_evaluations, error) from error
    return read_results(results_file(home, name, step, folder)) if kept else ()


def best_known(results: Sequence[TaskResult]) -> tuple[TaskResult, ...]:
    """Return one result for each task: the one of most problems, and of these the newest."""
    chosen: dict[str, TaskResult] = {}
    for result in sorted(results, key=lambda result: (result.asked, result.time)):
        chosen[result.task] = result
    return tuple(chosen[task] for task in dict.fromkeys(result.task for result in results))


class KeptResults:
    """Keeps the results of a model in a file as they come; each replaces those of equal settings.

    Where the file cannot be written, nothing is raised: with the next result all are tried again.

    Args:
        path: the file, as `results_file` returns it.

    Attributes:
        fault: why the latest results are not in the file; None if they are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault: MlxchatError | None = None
        self._waiting: list[TaskResult] = []
        self._written = False

    @property
    def where(self) -> Path | None:
        """The file, once there are results in it; None before, and where it was not written."""
        return self.path if self._written else None

    def add(self, result: TaskResult) -> None:
        """Keep a result, and those that could not be kept before."""
        self._waiting.append(result)
        try:
            _merge(self.path, self._waiting)
        except MlxchatError as error:
            self.fault = error
        else:
            self.fault = None
            self._written = True
            self._waiting.clear()


def _merge(path: Path, new: Sequence[TaskResult]) -> None:
    """Put results into a file, in place of those of equal settings; others stay.

    Raises:
        CheckpointError: the file is damaged, or of a later version, and stays as it is.
        LockedError: another process writes there.
        DiskError: the disk is full, or cannot be written.
    """
    with storing(path), _locked(path.parent):
        merged = {result.settings: result for result in read_results(path)}
        merged |= {result.settings: result for result in new}
        tasks = list(dict.fromkeys([*TASK_NAMES, *(result.task for result in merged.values())]))
        results = sorted(merged.values(), key=lambda result: tasks.index(result.task))
        content = {"format": 1, "results": [each.model_dump(mode="json") for each in results]}
        text = json.dumps(content, indent=2)
        with replacing(path) as partial:
            partial.write_text(f"{text}\n", "utf-8")
            sync(partial)


def _locked(folder: Path) -> Lock:
    """Lock the folder of results, which takes as long as others write there."""
    until = time.monotonic() + LONGEST_WAIT

    def wait() -> None:
        if time.monotonic() > until:
            raise in_use(folder, f"Another process is writing into {folder}.", "Try again later.")
        time.sleep(_POLL)

    return Lock.take_after(folder, wait, folder=True)
