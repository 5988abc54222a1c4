"""All that is on disk of a run: its checkpoints, its log and status, what it got right of tasks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from mlxchat.checkpoint.evaluation_files import evaluations_by_run, evaluations_of
from mlxchat.checkpoint.files import LONGEST, entries, is_folder, one_line, unreadable
from mlxchat.errors import ConfigError, NotFound
from mlxchat.home import STAGE_FOLDERS, Home

_LOCK = re.compile(r"\.(.+)\.lock")  # of a run, in the folder of its stage


@dataclass(frozen=True)
class RunPlaces:
    """The places of a run on disk.

    Attributes:
        name: the run's name.
        stage: its stage; None if nothing on disk says which.
        folder: the folder of its checkpoints; None if it has none.
        log: the folder of its log and its status; None if it has none, as an imported model.
        evaluations: the files of what its model got right of CORE and of other tasks.
    """

    name: str
    stage: str | None
    folder: Path | None
    log: Path | None
    evaluations: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.folder, self.log, *self.evaluations) if path)


def all_runs(home: Home) -> list[RunPlaces]:
    """Return the places of all runs in a home, in order of their names.

    A name that is in the folders of two stages has two entries.

    Raises:
        MlxchatError: a folder of runs cannot be read.
    """
    listed = [(stage, path) for stage in STAGE_FOLDERS for path in _below(home.stage(stage))]
    logs = {path.name: path for path in _below(home.root / "logs") if _holds_run(path)}
    evaluations = evaluations_by_run(home)
    runs = [
        RunPlaces(
            path.name,
            stage,
            path,
            logs.get(path.name),
            evaluations_of(evaluations.get(path.name, ()), path),
        )
        for stage, path in listed
        if _holds_run(path)
    ]
    locked = {
        found[1]: stage for stage, path in listed if (found := _LOCK.fullmatch(path.name))
    }  # a run that has saved nothing yet has a lock in the folder of its stage
    for name in logs.keys() - {run.name for run in runs}:
        of_run = evaluations_of(evaluations.get(name, ()), None)
        runs.append(RunPlaces(name, locked.get(name), None, logs[name], of_run))
    return sorted(runs, key=lambda run: (run.name, run.stage or ""))


def find_run(home: Home, name: str) -> RunPlaces:
    """Return the places of a run.

    Raises:
        NotFound: there is no such run; the message names similar ones.
        ConfigError: two stages have a run of that name.
        MlxchatError: a folder of runs cannot be read.
    """
    runs = all_runs(home)
    found = [run for run in runs if run.name == name]
    if not found:
        raise no_such_run(name, [run.name for run in runs])
    if len(found) > 1:
        folders = " and ".join(str(run.folder) for run in found)
        raise ConfigError(
            f"There are two runs called {one_line(name)}: {folders}.",
            "Rename one of these folders; mlxchat keeps names apart.",
        )
    return found[0]


def no_such_run(name: str, names: Sequence[str]) -> NotFound:
    """Return the error for a name that no run has."""
    problem = f"There is no run called {one_line(name) or repr(name)}."
    if not names:
        return NotFound(problem, "There are no runs yet. Make one: mlxchat quickstart")
    alike = {other.casefold(): other for other in names}
    found = get_close_matches(name.casefold(), alike, 3, 0.5)
    if near := [alike[each] for each in found]:
        return NotFound(problem, f"Did you mean {one_line(' or '.join(near), 5 * LONGEST)}?")
    return NotFound(problem, "mlxchat runs list shows all of them.")


def _below(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if there is no folder.

    Raises:
        MlxchatError: it cannot be read.
    """
    try:
        return entries(folder)
    except OSError as error:
        raise unreadable(folder, error) from error


def _holds_run(path: Path) -> bool:
    return not path.name.startswith(".") and is_folder(path)
