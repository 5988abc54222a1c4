"""The settings of a saved run that is resumed by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mlxchat.checkpoint import catalog, store
from mlxchat.checkpoint.files import one_line
from mlxchat.config.run import RunConfig
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.errors import ConfigError, NotFound, command
from mlxchat.home import Home
from mlxchat.train.stage import STAGES, read_trainer


def settings_to_resume(
    kind: type[RunConfig], name: str, home: Home, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a saved run, with those that are given in their place.

    Whether the given ones may differ is checked when the run is resumed, as for any settings.

    Args:
        kind: the settings model of the stage that the run must be of.
        name: the run's name.
        home: where runs are.
        given: settings by name, such as ``memory_limit``.

    Returns:
        The fields of ``kind`` by name, as JSON has them. `model_tag` is the run's name, under which
        it is now: it may have been renamed.

    Raises:
        NotFound: there is no such run, or it has saved no step.
        ConfigError: it is a run of another stage; or another name is given.
        CheckpointError: what it has saved is damaged, or no training can resume from it.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"`resume={name!a:.99}` is not the name of a run.", "Give its name, as text."
        )
    [stage] = [stage for stage in STAGES.values() if stage.settings is kind]
    if given.get("model_tag") not in (None, name):
        raise ConfigError(
            f"`resume={name}` already names the run, so `model_tag={given['model_tag']}` cannot "
            "be given as well.",
            "Leave one of them out.",
        )
    listed = catalog.runs(home.stages)
    found = [run for run in listed if run.name == name]
    if not found:
        of_stage = [run for run in listed if run.parent == home.stage(stage.name)]
        own = [run.name for run in of_stage if store.is_resumable(run)]
        raise NotFound(
            f"There is no run {one_line(name)!a} to resume in {home.stage(stage.name)}.",
            _others(name, own),
        )
    [run] = [run for run in found if run.parent == home.stage(stage.name)] or found[:1]
    other = home.stage_of(run)
    if other != stage.name:
        raise ConfigError(
            f"{name} is a run of {other}, not of {stage.name}.",
            f"Resume it with: {command(COMMAND_OF_STAGE[other], resume=name)}",
        )
    newest = store.latest(run)
    if newest is None:
        raise NotFound(
            f"The run {name} has not saved a checkpoint, so its settings are not known.",
            "Repeat the command that started it instead.",
        )
    saved = read_trainer(newest).settings.model_dump(mode="json")
    return {**saved, **given, "model_tag": name}


def _others(name: str, names: list[str]) -> str:
    """Return what to resume instead of a run that is not there."""
    if nearest := get_close_matches(name, names, 1):
        return f"Did you mean {nearest[0]}?"
    if names:
        return f"There are: {one_line(', '.join(sorted(names)), 500)}."
    return "No run has been saved there yet."
