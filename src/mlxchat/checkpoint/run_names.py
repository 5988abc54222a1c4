"""Checks the names of runs, and finds a place for the run of a model that was not trained here."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mlxchat.checkpoint import store
from mlxchat.checkpoint.files import unreadable
from mlxchat.config.run import NAME_IN_WORDS, require_name
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.names import namesake


def require_own_spelling(home: Home, name: str, setting: str) -> None:
    """Check that the name of a run does not differ from that of another in case only.

    Args:
        home: where runs are.
        name: the name of a run, new or existing.
        setting: the setting that names the run, for the error message.

    Raises:
        ConfigError: it does.
        MlxchatError: a folder of runs cannot be read.
    """
    refuse_other_spelling(
        home.stages,
        name,
        lambda other: f"Use `{setting}={other}` for the existing run, or another `{setting}`.",
    )


def refuse_other_spelling(folders: Iterable[Path], name: str, remedy: Callable[[str], str]) -> None:
    """Refuse the name of a run if one in these folders differs from it in case only.

    Args:
        folders: folders of runs, or of their logs.
        name: the name.
        remedy: returns what to do, given the other's name.

    Raises:
        ConfigError: there is such a run.
        MlxchatError: a folder cannot be read.
    """
    for folder in folders:
        try:
            other = namesake(folder / name)
        except OSError as error:
            raise unreadable(folder, error) from error
        if other is not None:
            raise ConfigError(
                f"{name} differs from {other.name}, a run in {folder}, in case only, which a Mac's "
                "disk does not distinguish.",
                remedy(other.name),
            )


def new_run(home: Home, name: str, conversational: bool, setting: str) -> Path:
    """Return the folder of a new run, among those of the stage that its model has reached.

    Args:
        home: where runs are.
        name: the name of the run.
        conversational: whether its model was trained on conversations.
        setting: the setting that names the run, for the error message.

    Raises:
        ConfigError: the name cannot be a folder's, or is another run's.
        MlxchatError: a folder of runs cannot be read.
    """
    require_name(name, f"Name it with `{setting}`: use {NAME_IN_WORDS}.")
    require_own_spelling(home, name, setting)
    if any(store.steps(stage / name) for stage in home.stages):
        raise ConfigError(
            f"There is already a run called {name}: {home.run(name)}.",
            f"Choose another name with `{setting}`.",
        )
    return (home.finetuned if conversational else home.runs) / name
