"""Resumes a run: finds its newest checkpoint, checks that its data is the same, and loads it.

Files are compared by their size and footer here (`quick_fingerprints`), and completely when they
are read (`KnownShards`).
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mlxchat.checkpoint import history, layout, store, trainer
from mlxchat.checkpoint.bases import BaseRecord
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.trainer import TrainerState
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import RunConfig, is_name
from mlxchat.data.fingerprint import agree, quick_fingerprints, replaced
from mlxchat.data.loader import LoaderState
from mlxchat.errors import CheckpointError, ConfigError, DataError
from mlxchat.model.gpt import GPT
from mlxchat.optim.optimizer import MuonAdamW
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan, evaluation_rows, refitted
from mlxchat.runtime import compute_dtype, hold_memory, mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Event, Noted
from mlxchat.tokenizer.bpe import Tokenizer

Config = TypeVar("Config", bound=RunConfig)


@dataclass
class TrainState:
    """Everything that training changes or continues from.

    ``step`` and ``loader`` are where this process starts; ``plan`` may change during the run.
    """

    plan: Plan
    tokenizer: Tokenizer
    model: GPT
    optimizer: MuonAdamW
    step: int
    loader: LoaderState
    base_history: History | None = None  # of the model that the run began with
    base: BaseRecord | None = None  # the model below the adapter that is trained, if one is

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are saved: what is trained and the optimizer's state."""
        arrays = *self.model.named_trainable().values(), *self.optimizer.state.values()
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class SavedRun(Generic[Config]):
    """The newest checkpoint of a run."""

    folder: Path
    trainer: TrainerState[Config]
    plan: Plan  # the saved one, with the evaluation that the settings ask for now


def read_saved(run: Path, stage: str, config: Config) -> SavedRun[Config] | None:
    """Read the newest checkpoint of a run; None if nothing has been saved.

    Args:
        run: the folder of the run's checkpoints.
        stage: the stage's name.
        config: the settings with which the run is to be resumed.

    Raises:
        ConfigError: the run was started with other settings, which are named.
        CheckpointError: the checkpoint cannot be read.
    """
    folder = store.latest(run)
    if folder is None:
        return None
    state = trainer.read_state(folder, {stage: type(config)})
    if differences := config.differences(state.settings.model_dump(mode="json")):
        raise ConfigError(
            f"The run {config.tag} was started with other settings: {', '.join(differences)}.",
            _how_to_differ(config, differences),
        )
    plan = state.plan
    rows = evaluation_rows(config, plan.model.sequence_len, plan.tokens_per_step)
    return SavedRun(folder, state, plan.model_copy(update={"eval_rows": rows}))


def _how_to_differ(config: RunConfig, differences: Sequence[str]) -> str:
    """Return the remedy where a run's name is taken by one with other settings."""
    name = f"{config.tag}-{config.data_name}"
    others_data = any(text.startswith(("`data`", "`dataset`")) for text in differences)
    if others_data and config.model_tag is None and config.data_name and is_name(name):
        return (
            f"Give this run a name of its own: `model_tag={name}`. Or keep the settings as they "
            f"were: `resume={config.tag}` alone does that."
        )
    return (
        f"Keep them as they were (`resume={config.tag}` alone does that), use another name "
        "with `model_tag`, or start from scratch with `fresh`, which renames the old run."
    )


def resume(
    config: RunConfig, saved: SavedRun[Config], resources: Resources, clock: Clock
) -> Generator[Event, None, TrainState]:
    """Load a saved run, with other micro-batches if memory or settings require it.

    Raises:
        MemoryLimitError: it does not fit.
        CheckpointError: as `load_state`.
    """
    plan = refitted(saved.plan, config, resources)
    hold_memory(plan.memory_limit, plan.peak, config.wired)
    state = load_state(plan, saved, compute_dtype(config.dtype))
    if plan.division != saved.plan.division:
        result = (
            "only dropout's random choices differ" if plan.dropout else "the result is the same"
        )
        yield Noted(clock(), f"Micro-batching changed ({result}): {plan.summary()}")
    return state


def load_state(plan: Plan, saved: SavedRun[Config], dtype: mx.Dtype) -> TrainState:
    """Load model, optimizer and place in the data as they were saved.

    Args:
        plan: the saved plan, or one that computes the same in other micro-batches.
        saved: the checkpoint.
        dtype: of the activations.

    Raises:
        CheckpointError: a file of the checkpoint is missing, damaged or another model's.
    """
    stored = layout.read_model(saved.folder, dtype)
    if stored.model.config != plan.model:
        raise CheckpointError(
            f"{saved.folder}: {layout.CONFIG} and {layout.TRAINER} describe different models.",
            "Use another name with `model_tag`, or start from scratch with `fresh`.",
        )
    stored.model.cast_frozen()
    optimizer = MuonAdamW(stored.model)
    optimizer.state = trainer.read_optimizer(saved.folder, optimizer.state)
    loader = trainer.read_loader(saved.folder)
    base_history, step = history.read_file(saved.folder), saved.trainer.step
    return TrainState(
        plan, stored.tokenizer, stored.model, optimizer, step, loader, base_history, stored.base
    )


# Is the data the same?

_OTHERWISE = "use another name with `model_tag`, or start from scratch with `fresh`."


def require_same_files(
    tag: str, folder: Path, data_dir: Path | None, state: TrainerState[PretrainConfig]
) -> None:
    """Compare the files in a folder with those of the same names that a run started with.

    Args:
        tag: the run's name.
        folder: the folder from which its shards will be read.
        data_dir: the setting that led to ``folder``.
        state: the run's state when it was saved.

    Raises:
        DataError: a file has changed, or the folder is another one and no fingerprints were saved
            with which to compare its files.
    """
    before = state.settings.data_dir
    comparable = bool(state.data) and state.fingerprints.keys() >= set(state.data)
    if not comparable and before != data_dir:
        raise DataError(
            f"The run {tag} was started with {_in_words(before)}, not with {_in_words(data_dir)}, "
            "and it is unknown whether their files are the same.",
            f"Use the data that it was started with, {_OTHERWISE}",
        )
    for name, found in quick_fingerprints(folder, state.data).items():
        if not agree(state.fingerprints.get(name, found), found):
            raise replaced(folder / name)


def require_revision(tag: str, folder: Path, found: str | None, saved: str | None) -> None:
    """Compare the hub's commits of a dataset now and when a run was saved, if both are known.

    Raises:
        DataError: they differ.
    """
    if saved and found and found != saved:
        raise DataError(
            f"The run {tag} was started with revision {saved} of its dataset; the shards in "
            f"{folder} are from revision {found}.",
            f"Restore the shards that it was started with, {_OTHERWISE}",
        )


def require_names(tag: str, folder: Path, saved: Sequence[str], names: Sequence[str]) -> None:
    """Check that all files with which a run was started are available.

    Args:
        tag: the run's name.
        folder: the dataset's folder.
        saved: the names of the files when the run was saved.
        names: the names of the files that are there, or that can be fetched.

    Raises:
        DataError: some are missing.
    """
    if missing := [name for name in saved if name not in names]:
        raise DataError(
            f"The run {tag} was started with files that are missing: {', '.join(missing[:3])}.",
            f"Restore them in {folder}, {_OTHERWISE}",
        )


def _in_words(data_dir: Path | None) -> str:
    return f"`data_dir={data_dir}`" if data_dir else "the dataset's own folder"
