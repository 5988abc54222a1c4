"""The part of `info` that describes an existing run, with `--model-tag`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import RunConfig
from mlxchat.errors import ConfigError, NotFound
from mlxchat.home import Home
from mlxchat.ui.console import say_json

if TYPE_CHECKING:
    from mlxchat.train.resume import SavedRun


def saved_folder(config: PretrainConfig, home: Home) -> Path | None:
    """Return the newest checkpoint of the run that the settings name.

    None if they name none, or describe one that is yet to be trained.

    Raises:
        NotFound: they do nothing but name a run, and nothing of it is saved.
        MlxchatError: it cannot be read.
    """
    from mlxchat.checkpoint import store
    from mlxchat.checkpoint.run_names import require_own_spelling
    from mlxchat.report.places import all_runs, no_such_run

    if config.model_tag is None:
        return None
    require_own_spelling(home, config.model_tag, "model_tag")
    newest = store.latest(home.run(config.model_tag))
    if newest is None and _given(config).keys() <= {"model_tag"}:
        runs = [run.name for run in all_runs(home) if run.folder]
        unknown = no_such_run(config.model_tag, runs)
        plan = "To describe a model before training it, give its `depth` as well."
        raise NotFound(
            f"There is no saved run called {config.model_tag}.", f"{unknown.remedy} {plan}"
        )
    return newest


def saved_run(config: PretrainConfig, newest: Path) -> "SavedRun[Any] | None":
    """Return a run as it was saved, with what the settings may change of it.

    Args:
        config: the settings that are given.
        newest: the directory of its newest step.

    Returns:
        The run; None if its model was not trained as this run: quantized or imported.

    Raises:
        ConfigError: other settings are given than the run has.
        CheckpointError: it cannot be read.
    """
    from mlxchat.checkpoint import layout
    from mlxchat.checkpoint.files import TRAINER
    from mlxchat.train.resume import SavedRun
    from mlxchat.train.stage import read_trainer

    given = {name: value for name, value in _given(config).items() if name != "model_tag"}
    trained = (newest / TRAINER).exists() and not layout.is_quantized(newest)
    if not trained:
        if given:
            named = " ".join(f"`{name}`" for name in given)
            raise ConfigError(
                f"The model of {newest.parent.name} has no training state, so {named} has no "
                "effect.",
                "Leave it out to see the model's size.",
            )
        return None
    state = read_trainer(newest)
    return SavedRun(
        newest,
        state.model_copy(update={"settings": _merged(state.settings, given, newest.parent.name)}),
        state.plan,
    )


def _given(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True)


def _merged(settings: RunConfig, given: dict[str, Any], name: str) -> RunConfig:
    """Return the settings of a run with given ones that do not change what is learned.

    Raises:
        ConfigError: one of them does, or the run's stage does not have it.
    """
    stored = settings.model_dump(mode="json")
    foreign = [setting for setting in given if setting not in stored]
    if foreign:
        raise ConfigError(
            f"`{foreign[0]}` is not a setting of {name}, which is a run of another stage.",
            "Leave it out to see the run as it is.",
        )
    merged = type(settings).model_validate({**stored, **given, "model_tag": name})
    if differences := merged.differences(stored):
        raise ConfigError(
            f"The run {name} was started with other settings: {', '.join(differences)}.",
            "Leave them out to see the run as it is, or give another `model_tag` for a new run.",
        )
    return merged


def show_model(newest: Path, json: bool) -> None:
    """Show the size of a model that was not trained as this run.

    Raises:
        MlxchatError: its config.json cannot be read.
    """
    from mlxchat.checkpoint import catalog, layout, store
    from mlxchat.model.size import parameters
    from mlxchat.ui.estimate import model_heading, parameter_rows
    from mlxchat.ui.tables import Section, show

    model, step, bits = (
        layout.read_config(newest),
        store.step_of(newest),
        catalog.quantized_bits(newest),
    )
    groups = parameters(model)
    if json:
        facts = {"tag": newest.parent.name, "saved_step": step, "bits": bits}
        say_json({**facts, "model": model.model_dump(), "parameters": groups})
        return
    made = "was imported" if bits is None else f"is quantized to {bits} bits"
    heading = [
        model_heading(newest.parent.name, model),
        f"This model {made}: it is from step {step:,}, and has no training state.",
    ]
    show(heading, [Section("Parameters", parameter_rows(groups))])
