"""A run to go on with: its newest saved step."""

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from mlxchat.checkpoint import layout, store
from mlxchat.checkpoint.layout import TrainerState
from mlxchat.config.run import RunConfig
from mlxchat.errors import MlxchatError
from mlxchat.plan.plan import Plan, evaluation_rows


class SavedRun(NamedTuple):
    """The newest checkpoint of a run to go on with."""

    folder: Path
    trainer: TrainerState
    plan: Plan

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.trainer.step == self.plan.num_iterations


def read_saved(run: Path, config: RunConfig) -> SavedRun | None:
    """The run in a folder, None where nothing of it was saved.

    Raises:
        MlxchatError: it was begun with other settings (which are named), or it cannot be read.
    """
    folder = store.latest(run)
    if folder is None:
        return None
    trainer = layout.read_trainer(folder)
    if differences := config.differences(trainer.settings):
        raise MlxchatError(
            f"The run {config.tag} was begun with other settings: {', '.join(differences)}.",
            "Repeat those to go on, name another run with --model-tag, or set the old one aside "
            "with --fresh.",
        )
    try:
        begun = Plan.model_validate(trainer.plan)
    except ValidationError as error:
        raise MlxchatError(
            f"The run {config.tag} was begun by a version of mlxchat whose plans were others.",
            "Name another run with --model-tag, or set the old one aside with --fresh.",
        ) from error
    rows = evaluation_rows(config, begun.model.sequence_len, begun.tokens_per_step)
    return SavedRun(folder, trainer, begun.model_copy(update={"eval_rows": rows}))
