"""Pretraining that begins with the weights of a model, one that was imported for instance."""

from pathlib import Path
from typing import Any

from mlxchat.checkpoint import catalog, history, layout, store
from mlxchat.checkpoint.history import History
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.plan.plan import shape
from mlxchat.runtime import machine


def of_model(config: PretrainConfig, home: Home) -> PretrainConfig:
    """The settings with the shape and the tokenizer of the model to begin with, if there is one.

    Raises:
        MlxchatError: there is no such model, it is quantized, is not of a shape that pretraining
            has, or a setting says another one.
    """
    if config.init_from is None:
        return config
    folder = _folder_or_own(config, home)
    model = layout.read_config(folder)
    if layout.is_quantized(folder):
        raise MlxchatError(
            f"The model in {folder} is quantized: it cannot be trained.",
            "Begin with the model that it was made of.",
        )
    given = config.model_dump(exclude_unset=True)
    determined = _determined(model, folder)
    for name, value in (determined | {"vocab_size": model.vocab_size}).items():
        if given.get(name) not in (None, value):
            raise MlxchatError(
                f"--{name.replace('_', '-')} {given[name]} does not go with --init-from: the model "
                f"in {folder} has {value}.",
                "Leave it out.",
            )
    settled = PretrainConfig.model_validate(given | determined)
    expected = shape(settled, model.vocab_size, model.n_layer)
    if expected != model:
        differences = [
            f"its {name} is {getattr(model, name)}, not {getattr(expected, name)}"
            for name in GPTConfig.model_fields
            if getattr(model, name) != getattr(expected, name)
        ]
        raise MlxchatError(
            f"Pretraining has no model like the one in {folder}: {', '.join(differences)}.",
            f"Fine-tune it: mlxchat sft --source {config.init_from}",
        )
    return settled


def model_to_begin_with(source: str, home: Home) -> tuple[GPT, History]:
    """The model that a run's name or a model's directory stands for, and how it came to be.

    Raises:
        MlxchatError: it is not there, or damaged.
    """
    folder = catalog.find_model(home.stages, source, None)
    return layout.read_model(folder, machine().compute_dtype).model, history.read(folder)


def _folder_or_own(config: PretrainConfig, home: Home) -> Path:
    """Of the model to begin with; where that has gone, of the run that began with it."""
    try:
        return catalog.find_model(home.stages, config.init_from, None)
    except MlxchatError:
        own = store.latest(home.runs / config.tag)
        if own is None:
            raise
        return own


def _determined(model: GPTConfig, folder: Path) -> dict[str, Any]:
    """The settings that a model leaves no choice of."""
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
