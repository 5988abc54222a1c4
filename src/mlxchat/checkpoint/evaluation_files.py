"""The files that evaluations are kept in: of which run, step and model each is.

`mlxchat eval base` writes into `Home.base_evaluations`, `mlxchat eval chat` into
`Home.chat_evaluations`:

    base_eval/d12_003225_500_per_task_1a2b3c4d_of_5e6f7a8b.jsonl   verdicts on examples of CORE
    base_eval/d12_003225_500_per_task_1a2b3c4d_of_5e6f7a8b.csv     its scores, as nanochat has them
    chat_eval/d12-sft_000200_9c0d1e2f.json                         results on tasks

A name begins with the run and the step. A directory that is no checkpoint counts as step 0 of a run
of its name. The last eight digits stand for the model's own files (`mlxchat.checkpoint.digests`):
what was evaluated is these weights and no others, whatever else has had the name. Earlier versions
left them out of the names of CORE's files; such a file is of the model unless that was saved after
it.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mlxchat.checkpoint import store
from mlxchat.checkpoint.files import entries, unreadable
from mlxchat.home import Home

VERDICTS = ".jsonl"  # ends the name of a file of verdicts on CORE's examples
_TASKS = ".json"  # ends that of a file of results on tasks
_NAME = re.compile(
    r"(?P<run>.+)_(?P<step>[0-9]{6,})(_[0-9]+_per_task)?_(?P<digest>[0-9a-f]{8})"
    r"(_of_(?P<model>[0-9a-f]{8}))?(_[0-9]+_tasks)?\.\w+"
)


class EvaluationFile(NamedTuple):
    """A file of an evaluation.

    Attributes:
        path: the file.
        run, step: the run and the step of the model; 0 of a directory that is no checkpoint.
        model: the model's `model_digest`; None if the name does not say.
    """

    path: Path
    run: str
    step: int
    model: str | None


def evaluation_file(path: Path) -> EvaluationFile | None:
    """Return what the name of a file says of its evaluation; None if it is no such file.

    >>> evaluation_file(Path("d12_000700_1a2b3c4d_of_5e6f7a8b.csv"))[1:]
    ('d12', 700, '5e6f7a8b')
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    model = match["digest"] if path.suffix == _TASKS else match["model"]
    return EvaluationFile(path, match["run"], int(match["step"]), model)


def evaluations_by_run(home: Home) -> dict[str, list[EvaluationFile]]:
    """Return the files of evaluations by the names of their runs, those on CORE first.

    Raises:
        MlxchatError: a folder of evaluations cannot be read.
    """
    found: dict[str, list[EvaluationFile]] = {}
    for folder in (home.base_evaluations, home.chat_evaluations):
        try:
            paths = sorted(entries(folder))
        except OSError as error:
            raise unreadable(folder, error) from error
        for file in filter(None, map(evaluation_file, paths)):
            found.setdefault(file.run, []).append(file)
    return found


def evaluations_of(files: Sequence[EvaluationFile], run: Path | None) -> tuple[Path, ...]:
    """Return those files with a run's name that belong to the run.

    What is called step 0 is an evaluation of a directory elsewhere that has the run's name, unless
    the run has saved that step, as an imported model has.

    Args:
        files: the files with its name.
        run: the folder of its checkpoints; None if it has none.
    """
    has_first = run is not None and store.directory(run, 0).exists()
    return tuple(file.path for file in files if file.step or has_first)


def renamed_evaluation(path: Path, run: str, new: str) -> Path:
    """Return the path that a run's evaluation has under the run's new name."""
    return path.with_name(new + path.name.removeprefix(run))


def rename_evaluations(paths: Iterable[Path], run: str, new: str) -> None:
    """Give evaluations the new name of their run. One stays where that would replace a file.

    Raises:
        OSError: a file cannot be renamed.
    """
    for path in paths:
        target = renamed_evaluation(path, run, new)
        if not target.exists():
            path.rename(target)
