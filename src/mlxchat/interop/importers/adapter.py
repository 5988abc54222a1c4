"""Import of adapters that PEFT, mlx-lm or this program has trained, onto a model that is here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import history, layout, store
from mlxchat.checkpoint.adapters import ADAPTER_CONFIG, ADAPTER_FILE
from mlxchat.checkpoint.bases import BaseRecord, is_adapter, read_base_record
from mlxchat.checkpoint.files import missing_file, one_line, read_json
from mlxchat.checkpoint.layout import Origin, SavedModel
from mlxchat.checkpoint.weights import read_arrays
from mlxchat.errors import CheckpointError, ConfigError
from mlxchat.interop.adapters import (
    PEFT_FILE,
    Adapter,
    copies_of_weights,
    from_mlx_lm,
    from_peft,
    require_same_effect,
)
from mlxchat.model.lora import load_adapter
from mlxchat.runtime import mx

_PICKLED = "adapter_model.bin"  # of earlier versions of PEFT


@dataclass(frozen=True)
class ForeignAdapter:
    """An adapter in a folder, read and converted.

    Attributes:
        path: the folder.
        program: the program whose form it has.
        name: a name for the run.
        adapter: in our form.
        folder: the directory of the model that it is put on.
        base: that model, as the adapter's directory will name it.
        conversational: whether it was trained on conversations.
        notes: lines to show the user.
    """

    path: Path
    program: str
    name: str
    adapter: Adapter
    folder: Path
    base: BaseRecord
    conversational: bool
    notes: tuple[str, ...] = ()


def concerns_adapter(path: Path, onto: object, force: bool, **of_models: object) -> bool:
    """Tell whether an adapter is to be imported, and not a whole model.

    Args:
        path: what is to be imported.
        onto: the model to put an adapter on; None if none was named.
        force: whether another model than the adapter's own was accepted.
        **of_models: settings that whole models have, by name; None for those that are not given.

    Raises:
        ConfigError: it is an adapter and no model is named, or the reverse, or a setting is of the
            other kind.
        CheckpointError: its adapter_config.json is damaged or describes no adapter.
    """
    found = (path / ADAPTER_CONFIG).is_file()
    if not found and onto is not None:
        raise ConfigError(
            f"There is no adapter in {path}.", "To import a whole model, leave out `onto`."
        )
    if not found and force:
        raise ConfigError("`force` only applies to adapters.", "Leave it out.")
    if found:
        _require_described(path)
    if found and onto is None:
        raise ConfigError(
            f"{path} contains an adapter.", "Name its base model: `onto=RUN`, such as d12."
        )
    given = [name for name, value in of_models.items() if value is not None]
    if found and given:
        raise ConfigError(
            f"`{given[0]}` only applies to whole models, not to adapters.", "Leave it out."
        )
    return found


def open_adapter(
    path: Path, onto: Path, conversational: bool | None = None, force: bool = False
) -> ForeignAdapter:
    """Read the adapter in a folder, for a model.

    Args:
        path: the folder.
        onto: the directory of the model.
        conversational: whether it was trained on conversations; None to judge by the tokenizer
            beside it, or else by the model's.
        force: accept an adapter that is known to be of another model.

    Raises:
        CheckpointError: the adapter is damaged, computes something that adapters here do not, does
            not fit the model, or is of another model.
    """
    base = history.record_of_base(onto)
    if is_adapter(path) and not force:
        _require_same_weights(path, base)
    settings, config = read_json(path / ADAPTER_CONFIG), layout.read_config(onto)
    if "peft_type" in settings:
        tensors = read_arrays(_weights(path, PEFT_FILE))
        adapter, program = from_peft(settings, tensors, config), "peft"
        require_same_effect(adapter, settings, tensors)
    else:
        tensors = read_arrays(_weights(path, ADAPTER_FILE))
        adapter, program = from_mlx_lm(settings, tensors, config), "mlx-lm"
    if conversational is None:
        conversational = layout.has_chat_template(path) or layout.has_chat_template(onto)
    name = path.resolve().name
    notes = () if is_adapter(path) else _named_base(settings)
    if copied := copies_of_weights(tensors):
        notes += (
            f"{one_line(copied[0], 99)} in it is ignored, since the base model's own "
            "weights are used.",
        )
    return ForeignAdapter(path, program, name, adapter, onto, base, conversational, notes)


def import_adapter(run: Path, foreign: ForeignAdapter) -> Path:
    """Save an adapter as the only step of a run, and return the step's directory.

    Raises:
        CheckpointError: the model's files are damaged, or a model has been saved in that run.
        DiskError: the disk is full or cannot be written.
        LockedError: another process writes there.
    """
    saved = layout.read_model(foreign.folder, mx.float32)
    load_adapter(saved.model, foreign.adapter.lora, foreign.adapter.arrays)
    adapted = SavedModel(saved.model, saved.tokenizer, foreign.conversational, foreign.base)
    origin = Origin(program=foreign.program, path=str(foreign.path.resolve()), step=0)

    def write(folder: Path) -> None:
        layout.write_saved(folder, adapted)
        origin.write(folder)

    with store.locked(run):
        if store.require_steps(run):
            raise CheckpointError(
                f"There is already a model in {run}.", "Choose another name with `model_tag`."
            )
        return store.save(run, 0, write)


def _named_base(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line about the model that an adapter names, which nothing can be compared with."""
    named = settings.get("base_model_name_or_path") or settings.get("model")
    if not isinstance(named, str):
        return ()
    return (
        f"According to its settings it was trained on {one_line(named, 99)}, which "
        "cannot be verified.",
    )


def _weights(path: Path, name: str) -> Path:
    if (path / name).exists():
        return path / name
    if (path / _PICKLED).exists():
        raise CheckpointError(
            f"{path / _PICKLED} is a pickle file, which could run code.",
            f"Save the adapter again with a current version of PEFT, which writes {PEFT_FILE}.",
        )
    raise missing_file(path / name, importing=True)


def _require_described(path: Path) -> None:
    """Check that adapter_config.json says what kind of adapter a folder has."""
    settings = read_json(path / ADAPTER_CONFIG)
    if not settings.keys() & {"peft_type", "fine_tune_type", "lora_parameters"}:
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG} describes no adapter: it has neither peft_type, as PEFT "
            "writes, nor lora_parameters, as mlx-lm does.",
            "Copy the whole folder again from the original.",
        )


def _require_same_weights(path: Path, base: BaseRecord) -> None:
    record = read_base_record(path)
    if record.weights != base.weights:
        raise CheckpointError(
            f"{path} is an adapter of {record.run}, step {record.step:,}, whose weights differ "
            f"from those of {base.run}, step {base.step:,}.",
            "Name the model that it was trained on. `force` accepts another one, but the result "
            "will not be sensible.",
        )
