"""The model that a run starts from: its shape, and the learning rates of its own training."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from mlxchat.checkpoint import catalog, layout, store, trainer
from mlxchat.checkpoint.bases import BaseRecord, is_adapter, size_of_weights
from mlxchat.checkpoint.history import History, record_of_base
from mlxchat.config.lora import LoraConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.sft import ConversationConfig
from mlxchat.errors import CheckpointError, ConfigError, MlxchatError, command
from mlxchat.home import Home
from mlxchat.model.adapter import adapter_parameters
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import add_adapter
from mlxchat.model.size import parameters
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates
from mlxchat.plan.memory import AdapterPlan, Resources
from mlxchat.plan.plan import Plan, shape
from mlxchat.runtime import compute_dtype
from mlxchat.train.resume import read_saved
from mlxchat.train.stage import history_of, read_trainer, stage_of


class Base(NamedTuple):
    """The facts about a trained model that the plan of fine-tuning needs."""

    model: GPTConfig
    learning_rates: dict[str, float]  # at their highest, by group
    tokens_per_step: int


def read_base(folder: Path, home: Home, lora: LoraConfig | None = None) -> Base:
    """Read what a model's directory says of its training; nanochat's numbers if it says nothing.

    As in nanochat, the learning rates of a modern model are those before they were scaled by the
    batch.

    Args:
        folder: the model's directory.
        home: where its run is, if it has one.
        lora: the adapter that is to be trained on it; None if all of it is.

    Raises:
        CheckpointError: there is no model, it cannot be trained, or another version saved it.
    """
    model = layout.read_config(folder)
    require_trainable(folder, lora)
    if not (folder / layout.TRAINER).exists():
        config = PretrainConfig(arch=model.arch)
        rates = learning_rates(config.numbers, model, REFERENCE_BATCH)
        return Base(model, rates, REFERENCE_BATCH)
    state = read_trainer(folder)
    rates = stage_of(state, home).learning_rates(state.plan)
    return Base(model, rates, state.plan.tokens_per_step)


def unscaled_rates(plan: Plan, init_lr_frac: float) -> dict[str, float]:
    """Return the learning rates of pretraining, by group, a share of which are the plan's."""
    return {group: rate / init_lr_frac for group, rate in plan.learning_rates.items()}


def require_trainable(folder: Path, lora: LoraConfig | None = None) -> None:
    """Check that the model in a directory can be trained, as a whole or as an adapter says.

    Raises:
        CheckpointError: it cannot.
    """
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder} is an adapter, which cannot be trained further.",
            f"Merge it into its base model first: {command('fuse', model_tag=folder.parent.name)}",
        )
    if lora is None and layout.is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized, so only an adapter on it can be trained.",
            "Use `lora`, or train the model it was made from and quantize the result.",
        )


Beginning = TypeVar("Beginning", bound=ConversationConfig | RlConfig)


def with_default_source(
    config: Beginning, home: Home, stage: str, after: Sequence[str], found: Sequence[str] = ()
) -> Beginning | None:
    """Fill in the model to begin with, if the settings name none; None if there is no such model.

    It is that of an unfinished run with the same settings, or else the newest of the stages before
    that can be trained and was not set aside.

    Args:
        config: the settings.
        home: where the runs are.
        stage: the name of the stage that begins with it.
        after: those of the stages before.
        found: other settings that a run finds where none is given: those of the unfinished run.
    """
    if config.source is not None:
        return config
    for name, folder in catalog.newest_steps([home.stage(stage)]):
        with suppress(MlxchatError):  # it cannot be resumed, or not with these settings
            state = trainer.read_state(folder, {stage: type(config)})
            left_out = [field for field in found if getattr(config, field) is None]
            filled = {field: getattr(state.settings, field) for field in ("source", *left_out)}
            same = cast(Beginning, config.model_copy(update=filled))
            if same.tag == name and not state.finished:
                read_saved(folder.parent, stage, same)
                return same
    newest = catalog.last_saved([home.stage(name) for name in after], _can_be_trained)
    if newest is None:
        return None
    return cast(Beginning, config.model_copy(update={"source": newest.parent.name}))


def _can_be_trained(folder: Path) -> bool:
    """Return whether a run is chosen by default: it can be trained, and was not set aside."""
    if catalog.SET_ASIDE.search(folder.parent.name) or is_adapter(folder):
        return False
    return catalog.quantized_bits(folder) is None


class LoadedBase(NamedTuple):
    """The model that a run starts from."""

    model: GPT
    history: History  # how it came to be
    base: BaseRecord | None  # the model in its directory, if an adapter on it is trained


def load_base(
    folder: Path, home: Home, dtype: str, lora: LoraConfig | None = None, seed: int = 0
) -> LoadedBase:
    """Read the model in a directory to train it further, and how it came to be.

    Args:
        folder: the model's directory.
        home: where its run is, if it has one.
        dtype: the precision to train it in, as the setting names it.
        lora: the adapter to put on it, which alone is trained then; None for none.
        seed: decides about the initial values of an adapter.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the adapter is to change parts that the model has not.
    """
    model, before = layout.read_model(folder, compute_dtype(dtype)).model, history_of(folder, home)
    if lora is None:
        return LoadedBase(model, before, None)
    add_adapter(model, lora, seed)
    model.cast_frozen()
    return LoadedBase(model, before, record_of_base(folder))


def adapter_plan(folder: Path, lora: LoraConfig | None, value_bytes: int) -> AdapterPlan | None:
    """Return the sizes of an adapter on the model in a directory; None if all of it is trained.

    Args:
        folder: the model's directory.
        lora: the adapter.
        value_bytes: of a number in the compute dtype, in which plain weights are held.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the adapter is to change parts that the model has not.
    """
    if lora is None:
        return None
    model, quantized = layout.read_config(folder), layout.is_quantized(folder)
    plain = sum(parameters(model).values()) * value_bytes
    return AdapterPlan(
        parameters=adapter_parameters(model, lora),
        frozen=size_of_weights(folder) if quantized else plain,
        layers=model.n_layer - lora.first_layer(model),
        dequantizes=quantized,
        dora=lora.dora,
    )


def adapter_of(config: PretrainConfig, home: Home, resources: Resources) -> AdapterPlan | None:
    """Return the sizes of the adapter that continued pretraining trains; None if it trains all.

    Raises:
        MlxchatError: the model that it begins with cannot be read, or has not those parts.
    """
    if config.lora is None:
        return None
    return adapter_plan(folder_or_own(config, home), config.lora, resources.value_bytes)


def with_shape_of_base(config: PretrainConfig, home: Home) -> PretrainConfig:
    """Fill in shape and tokenizer of the model to begin with, if the settings name one.

    Raises:
        NotFound: there is no such model.
        CheckpointError: it is quantized, or pretraining has no model of its shape.
        ConfigError: a setting contradicts it.
    """
    if config.init_from is None:
        return config
    folder = folder_or_own(config, home)
    model = layout.read_config(folder)
    if folder.parent != home.runs / config.tag:  # not the run's own step, if the model is gone
        require_trainable(folder, config.lora)
    given = config.model_dump(exclude_unset=True)
    determined = _determined(model, folder)
    for name, value in (determined | {"vocab_size": model.vocab_size}).items():
        if given.get(name) not in (None, value):
            raise ConfigError(
                f"`{name}={given[name]}` contradicts `init_from`: the model in {folder} has "
                f"{value}.",
                "Leave it out.",
            )
    settled = PretrainConfig.model_validate(given | determined)
    _require_shape(model, shape(settled, model.vocab_size, model.n_layer), folder, config)
    return settled


def _require_shape(
    model: GPTConfig, expected: GPTConfig, folder: Path, config: PretrainConfig
) -> None:
    """Raise `CheckpointError` unless pretraining makes models of this very shape."""
    differences = [
        f"its {name} is {getattr(model, name)}, not {getattr(expected, name)}"
        for name in GPTConfig.model_fields
        if getattr(model, name) != getattr(expected, name)
    ]
    if differences:
        raise CheckpointError(
            f"Pretraining cannot continue the model in {folder}: {', '.join(differences)}.",
            f"Fine-tune it: {command('sft', source=config.init_from)}",
        )


def folder_or_own(config: PretrainConfig, home: Home) -> Path:
    """Return the directory of the model to begin with; if it is gone, the run's own newest step."""
    try:
        return catalog.find_model(home.stages, config.init_from, None)
    except MlxchatError:
        own = store.latest(home.runs / config.tag)
        if own is None:
            raise
        return own


def _determined(model: GPTConfig, folder: Path) -> dict[str, Any]:
    """Return the settings that follow from a model."""
    determined: dict[str, Any] = {
        "arch": model.arch,
        "depth": model.n_layer,
        "head_dim": model.head_dim,
        "max_seq_len": model.sequence_len,
        "tokenizer_dir": folder.absolute(),
    }
    if model.arch == "modern":
        determined["window_pattern"] = model.window_pattern
    return determined
