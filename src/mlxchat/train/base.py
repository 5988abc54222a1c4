"""The model that a run begins with: its shape, and what its own training says of learning rates."""

from pathlib import Path
from typing import Any, NamedTuple

from mlxchat.checkpoint import catalog, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import CheckpointError, ConfigError, MlxchatError, command
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.optim.schedule import REFERENCE_BATCH, learning_rates
from mlxchat.plan.plan import shape
from mlxchat.runtime import compute_dtype
from mlxchat.train.stage import history_of, read_trainer, stage_of


class Base(NamedTuple):
    """The facts of a trained model from which fine-tuning plans."""

    model: GPTConfig
    learning_rates: dict[str, float]  # at their highest, by group
    tokens_per_step: int


def read_base(folder: Path, home: Home) -> Base:
    """Read what a model's directory says of its training; nanochat's numbers if it says nothing.

    As in nanochat, the learning rates of a modern model are those before they were scaled by the
    batch.

    Raises:
        CheckpointError: there is no model, it is quantized, or another version saved it.
    """
    model = layout.read_config(folder)
    require_trainable(folder)
    if not (folder / layout.TRAINER).exists():
        config = PretrainConfig(arch=model.arch)
        rates = learning_rates(config.numbers, model, REFERENCE_BATCH)
        return Base(model, rates, REFERENCE_BATCH)
    state = read_trainer(folder)
    rates = stage_of(state, home).learning_rates(state.plan)
    return Base(model, rates, state.plan.tokens_per_step)


def require_trainable(folder: Path) -> None:
    """Check that the model in a directory is not quantized.

    Raises:
        CheckpointError: it is.
    """
    if layout.is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Name the model that it was made from with `source`, and quantize the result.",
        )


def load_base(folder: Path, home: Home, dtype: str) -> tuple[GPT, History]:
    """Read the model in a directory to train it further, and how it came to be.

    Args:
        folder: the model's directory.
        home: where its run is, if it has one.
        dtype: the precision to train it in, as the setting names it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    model = layout.read_model(folder, compute_dtype(dtype)).model
    return model, history_of(folder, home)


def with_shape_of_base(config: PretrainConfig, home: Home) -> PretrainConfig:
    """Fill in shape and tokenizer of the model to begin with, if the settings name one.

    Raises:
        NotFound: there is no such model.
        CheckpointError: it is quantized, or pretraining has no model of its shape.
        ConfigError: a setting contradicts it.
    """
    if config.init_from is None:
        return config
    folder = _folder_or_own(config, home)
    model = layout.read_config(folder)
    if layout.is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Begin with the model that it was made from.",
        )
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
            f"Pretraining has no model like the one in {folder}: {', '.join(differences)}.",
            f"Fine-tune it: {command('sft', source=config.init_from)}",
        )


def _folder_or_own(config: PretrainConfig, home: Home) -> Path:
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
