"""What learns in a run: a new model with its optimizer, or those of a checkpoint.

A run to go on with: its newest saved step.

Whether a run that goes on finds what it began with: files of that name, text and revision.

What is told here takes a look at each file; the whole is compared when it is read (`KnownShards`).
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from mlxchat import runtime
from mlxchat.checkpoint import history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import TrainerState
from mlxchat.config.run import RunConfig
from mlxchat.data.fingerprint import agree, frames, replaced
from mlxchat.data.loader import LoaderState
from mlxchat.errors import CheckpointError, ConfigError, DataError
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import Capacity, memory_limit
from mlxchat.plan.plan import Plan, evaluation_rows, refitted
from mlxchat.runtime import machine
from mlxchat.telemetry.events import Clock, Event, Noted
from mlxchat.tokenizer.bpe import Tokenizer


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
        raise ConfigError(
            f"The run {config.tag} was begun with other settings: {', '.join(differences)}.",
            "Repeat those to go on, name another run with `model_tag`, or set the old one aside "
            "with `fresh`.",
        )
    try:
        begun = Plan.model_validate(trainer.plan)
    except ValidationError as error:
        raise CheckpointError(
            f"The run {config.tag} was begun by a version of mlxchat whose plans were others.",
            "Name another run with `model_tag`, or set the old one aside with `fresh`.",
        ) from error
    rows = evaluation_rows(config, begun.model.sequence_len, begun.tokens_per_step)
    return SavedRun(folder, trainer, begun.model_copy(update={"eval_rows": rows}))


class Learner(NamedTuple):
    """A model and all that its training goes on from."""

    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState
    past: History | None = None  # of the model that the run began with

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are saved: weights and the optimizer's state."""
        arrays = *self.model.named_parameters().values(), *self.optimizer.state.values()
        return sum(array.nbytes for array in arrays)


def go_on(
    config: RunConfig, saved: SavedRun, available: Capacity, clock: Clock
) -> Generator[Event, None, Learner]:
    """That of a saved run, computed otherwise where the memory or the settings ask for it.

    Raises:
        MlxchatError: it does not fit into the memory, or as `resume`.
    """
    made = refitted(saved.plan, config, available)
    hold_memory(made, config, available)
    learner = resume(made, saved)
    if made != saved.plan:
        yield Noted(clock(), f"Computed otherwise than before, to learn the same: {made.summary()}")
    return learner


def resume(made: Plan, saved: SavedRun) -> Learner:
    """As it was saved, to be trained by a plan that may compute the same otherwise.

    Raises:
        MlxchatError: a file of the checkpoint is missing, damaged or of another model.
    """
    stored = layout.read_model(saved.folder, machine().compute_dtype)
    optimizer = new_optimizer(stored.model)
    load_optimizer(optimizer, saved.folder)
    loader = layout.read_loader(saved.folder)
    step = saved.trainer.step
    past = history.past(saved.folder)
    return Learner(made, stored.tokenizer, stored.model, optimizer, step, loader, past)


def load_optimizer(optimizer: MuonAdamW, folder: Path) -> None:
    """Give an optimizer the state in a saved step.

    Raises:
        MlxchatError: there is none, it is damaged or of another model.
    """
    path = folder / layout.OPTIMIZER
    state = layout.read_arrays(path)
    layout.check_arrays(path, state, optimizer.state)
    optimizer.state = state


def hold_memory(made: Plan, config: RunConfig, available: Capacity) -> None:
    """Let this process take no more than the plan's peak, and the memory limit, allow."""
    limit = memory_limit(config, made.model, made.rows, available)
    runtime.hold_memory(limit, made.memory(available)["peak"], config.wired_bytes)


def new_optimizer(model: GPT) -> MuonAdamW:
    """Of a model, at its beginning."""
    return MuonAdamW(model)


_PUT_BACK = "name another run with `model_tag`, or begin anew with `fresh`."


def require_same_files(tag: str, folder: Path, data_dir: Path | None, begun: TrainerState) -> None:
    """Compare the files that are in a folder with those of their names that a run began with.

    Args:
        tag: the run's name.
        folder: where its shards are to be read from.
        data_dir: what the settings say of that.
        begun: the state of the run as it was saved.

    Raises:
        MlxchatError: one is another file, or the folder is another one and there is nothing to
            compare its files with.
    """
    before = begun.settings.get("data_dir")
    comparable = bool(begun.data) and begun.fingerprints.keys() >= set(begun.data)
    if not comparable and before != (data_dir and str(data_dir)):
        raise DataError(
            f"The run {tag} began with {_said(before)}, not with {_said(data_dir)}, and nothing "
            "was saved to tell whether their files are the same.",
            f"Give it what it began with, {_PUT_BACK}",
        )
    for name, found in frames(folder, begun.data).items():
        if not agree(begun.fingerprints.get(name, found), found):
            raise replaced(folder / name)


def require_revision(tag: str, folder: Path, found: str | None, begun_with: str | None) -> None:
    """Compare revisions of the hub, where both are known.

    Raises:
        MlxchatError: they differ.
    """
    if begun_with and found and found != begun_with:
        raise DataError(
            f"The run {tag} began with revision {begun_with} of its dataset; the shards in "
            f"{folder} are of {found}.",
            f"Put those back that it began with, {_PUT_BACK}",
        )


def require_names(tag: str, folder: Path, begun_with: Sequence[str], names: Sequence[str]) -> None:
    """All files that a run began with must be there.

    Args:
        tag: the run's name.
        folder: of the dataset.
        begun_with: their names.
        names: of the files that are there, or can be fetched.

    Raises:
        MlxchatError: some are missing.
    """
    if missing := [name for name in begun_with if name not in names]:
        raise DataError(
            f"The run {tag} began with data that is not there: {', '.join(missing[:3])}.",
            f"Put it back into {folder}, {_PUT_BACK}",
        )


def _said(data_dir: Path | str | None) -> str:
    return f"`data_dir={data_dir}`" if data_dir else "the dataset's own folder"
