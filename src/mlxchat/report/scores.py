"""The results that `mlxchat eval base` and `eval chat` have kept of a run, by task."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mlxchat.checkpoint import store
from mlxchat.checkpoint.digests import own_evaluations
from mlxchat.checkpoint.evaluation_files import VERDICTS, evaluation_file
from mlxchat.checkpoint.task_results import TaskResult, best_known, results_of
from mlxchat.counts import counted
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.core_kept import read_verdicts
from mlxchat.evaluate.core_tasks import CORE_TASKS
from mlxchat.home import Home
from mlxchat.report.places import RunPlaces


class TaskScore(NamedTuple):
    """A task of CORE, and how many of its examples were right."""

    task: str
    right: int
    examples: int

    @property
    def share(self) -> float:
        """The share of the examples that were right."""
        return self.right / self.examples


def kept_scores(places: RunPlaces, step: int) -> list[TaskScore]:
    """Return what a checkpoint got right of CORE, as `mlxchat eval base` has kept it.

    Of several evaluations it is the one of most examples.

    Args:
        places: the run.
        step: the checkpoint.

    Raises:
        MlxchatError: nothing tells which of the evaluations are of its model.
    """
    best: dict[tuple[str, int], bool] = {}
    for path in _of_model(places, step):
        if path.suffix == VERDICTS:
            with suppress(OSError):
                verdicts, _ = read_verdicts(path)
                best = verdicts if len(verdicts) > len(best) else best
    counts, right = Counter(task for task, _ in best), Counter[str]()
    for (task, _), was_right in best.items():
        right[task] += was_right
    return [TaskScore(task, right[task], counts[task]) for task in CORE_TASKS if counts[task]]


def _of_model(places: RunPlaces, step: int) -> list[Path]:
    """Return the files of the evaluations of a checkpoint's model."""
    if places.folder is None:
        return []
    return own_evaluations(places.evaluations, store.directory(places.folder, step), step)


def of_other_models(places: RunPlaces, steps: Sequence[int]) -> tuple[Path, ...]:
    """Return those files of evaluations with a run's name that are of other models.

    Another model has had the name and a step that is saved now. Of what was evaluated at other
    steps, nothing tells the model.

    Args:
        places: the run.
        steps: its checkpoints. One that cannot be read says nothing against an evaluation.
    """
    others: list[Path] = []
    for step in steps if places.evaluations else ():
        with suppress(MlxchatError):
            own = _of_model(places, step)
            files = filter(None, map(evaluation_file, places.evaluations))
            others += [file.path for file in files if file.step == step and file.path not in own]
    return tuple(others)


class StepResults(NamedTuple):
    """The results of a checkpoint on tasks, of each settings that they were asked with."""

    step: int
    results: tuple[TaskResult, ...]


def kept_results(
    home: Home, places: RunPlaces, steps: Sequence[int]
) -> tuple[tuple[StepResults, ...], tuple[str, ...]]:
    """Return the results on tasks of a run's checkpoints, and why any cannot be read.

    Args:
        home: where they are.
        places: the run.
        steps: its checkpoints. Those without results are left out.
    """
    found, faults = list[StepResults](), list[str]()
    for step in steps if places.evaluations else ():
        try:
            assert places.folder  # where the steps are
            folder = store.directory(places.folder, step)
            results = results_of(home, places.name, step, folder)
        except MlxchatError as error:
            faults.append(error.problem)
        else:
            found += [StepResults(step, results)] if results else []
    return tuple(found), tuple(faults)


def beside_each_other(
    runs: Sequence[Sequence[StepResults]],
) -> dict[str, list[TaskResult | None]]:
    """Return a result of each run by task: of its newest step that has any, None without one.

    If there are settings that all the runs that know the task were asked with, they are of these
    settings; else each is that of most problems.
    """
    newest = [judged[-1].results if judged else () for judged in runs]
    tasks = dict.fromkeys(result.task for results in newest for result in results)
    found = dict[str, list[TaskResult | None]]()
    for task in tasks:
        known = [[result for result in results if result.task == task] for results in newest]
        common = set.intersection(*({each.settings for each in of} for of in known if of))
        alike = [[each for each in of if not common or each.settings in common] for of in known]
        found[task] = [next(iter(best_known(of)), None) for of in alike]
    return found


def results_in_json(judged: Sequence[StepResults]) -> list[dict[str, Any]]:
    """Return results as plain values for JSON."""
    return [
        {
            "step": step.step,
            **result.model_dump(mode="json"),
            "score": result.share,
            "centered": result.centered,
        }
        for step in judged
        for result in step.results
    ]


def result_in_words(result: TaskResult) -> str:
    """Return what was right of a task, with its interval, what guessing gets, and the settings."""
    right = f"{result.interval} of {result.asked:,}"
    return " · ".join([right, f"guessing {result.random:.1%}", settings_in_words(result)])


def settings_in_words(result: TaskResult) -> str:
    """Return how a task was asked: which problems, how they were answered, in what precision."""
    settings = []
    if result.max_problems is not None:
        settings.append(f"first {counted(result.max_problems, 'problems')}")
    if result.max_tokens is None:
        settings.append("likeliest letter")
    else:
        settings.append(f"temperature {result.temperature:g}" if result.temperature else "greedy")
        settings.append(f"up to {counted(result.max_tokens, 'tokens')}")
    return ", ".join([*settings, result.dtype])
