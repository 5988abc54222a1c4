"""What a saved step's directory holds, and how a model is read from it.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
    optimizer.safetensors  loader.safetensors  trainer.json
    SHA256SUMS

The first line is a model directory as mlx-lm reads it; the second is what training needs to go on,
and a quantized model hasn't got. Every file that is read is compared with its checksum first, where
the directory has checksums: one that another program made need not.

The arrays of safetensors files, and which files a model's directory has them in.

Where an imported model is from: a file in its directory, ``origin.json``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mlxchat import __version__
from mlxchat.checkpoint import files
from mlxchat.checkpoint.files import (
    CHECKSUMS,
    QUANTIZATION,
    check_file,
    damaged,
    missing_file,
    read_json,
    unusable,
)
from mlxchat.checkpoint.files import CONFIG as CONFIG
from mlxchat.checkpoint.files import TRAINER as TRAINER
from mlxchat.data.loader import LoaderState
from mlxchat.errors import CheckpointError, command
from mlxchat.model.block import NORM_EPS
from mlxchat.model.config import ERAS, EraName, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.quantization import from_config, quantizable, to_config
from mlxchat.model.quantized import formats_of, quantize_layers
from mlxchat.runtime import bound_buffer_cache, machine, mx
from mlxchat.tokenizer.bpe import (
    ASSISTANT_END,
    BOS,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Tokenizer,
)

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def model_files(folder: Path) -> list[Path]:
    """The files of a model: all that its index names, or the only one. They may be missing.

    Raises:
        MlxchatError: the index is damaged, or names files of other folders.
    """
    index = folder / INDEX
    if not index.exists():
        return [folder / MODEL]
    files.check_file(index)
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(map(_is_name, listed.values())):
        raise damaged(index, "no weight_map of files in the same folder")
    return [folder / name for name in sorted(set(listed.values()))]


def read_model_arrays(folder: Path) -> dict[str, mx.array]:
    """The arrays of all files of a model, evaluated.

    Raises:
        MlxchatError: a file is missing or damaged, or two have an array of the same name.
    """
    arrays: dict[str, mx.array] = {}
    for file in model_files(folder):
        for name, array in read_arrays(file).items():
            if name in arrays:
                raise damaged(file, f"{name} is in another file too")
            arrays[name] = array
    return arrays


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, evaluated."""
    arrays = open_arrays(path)
    try:
        mx.eval(arrays)
    except RuntimeError as error:
        raise damaged(path, error) from error
    return arrays


def open_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, which MLX will read when they are evaluated."""
    if not path.exists():
        raise files.missing_file(path)
    files.check_file(path)
    return open_unchecked(path)


def open_unchecked(path: Path) -> dict[str, mx.array]:
    """Open a safetensors file as `open_arrays` does, without comparing its checksum."""
    try:
        arrays: Any = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(arrays, dict):
        raise damaged(path, "not a table of arrays")
    return arrays


def check_arrays(
    path: Path, found: Mapping[str, mx.array], expected: Mapping[str, mx.array]
) -> None:
    """Names and shapes must be exactly those expected; ``path`` is of the file or its folder."""
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is unexpected" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} has shape {found[name].shape}, not {expected[name].shape}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        folder = path if path.is_dir() else path.parent
        raise unusable(folder, f"{path}: {'; '.join(faults[:3])}{more}.")


def _is_name(file: object) -> bool:
    return isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) is not None


ORIGIN = "origin.json"

Note = TypeVar("Note", bound=BaseModel)


class Origin(BaseModel):
    """What was imported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str  # that wrote it
    path: str
    step: int
    bits_per_byte: float | None = None  # of validation, as that program measured it

    def write(self, folder: Path) -> None:
        """Into the directory of the imported model."""
        (folder / ORIGIN).write_text(self.model_dump_json(indent=2), "utf-8")


def read_origin(folder: Path) -> Origin | None:
    """That of the model in a directory; None where it wasn't imported.

    Raises:
        MlxchatError: the file is damaged.
    """
    return read_note(folder / ORIGIN, Origin)


def read_note(path: Path, kind: type[Note]) -> Note | None:
    """What was noted in a file beside a model; None where there is no such file.

    Raises:
        MlxchatError: it is damaged.
    """
    if not path.exists():
        return None
    files.check_file(path)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise damaged(path, "it is not what mlxchat wrote") from error


FORMAT = 3  # of trainer.json
PRETRAINING, FINE_TUNING = "pretraining", "fine-tuning"  # the stages
GENERATION = "generation_config.json"
OPTIMIZER = "optimizer.safetensors"
LOADER = "loader.safetensors"
MODEL_TYPES: dict[EraName, str] = {  # mlx-lm and transformers know the first
    era: "nanochat" if era == "classic" else f"nanochat_{era}" for era in ERAS
}
OWN_FIELDS = {  # of `GPTConfig`, by their names in config.json; only classic models do without
    "window_pattern": "window_pattern",
    "vocab_multiple": "vocab_multiple",
    "final_logit_softcapping": "softcap",
}


class TrainerState(BaseModel):
    """What training needs beside arrays to go on after a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    mlxchat: str = __version__
    mlx: str = version("mlx")
    step: int
    stage: str = PRETRAINING
    settings: dict[str, Any]
    plan: dict[str, Any]
    meter: dict[str, Any]
    data: list[str]  # the dataset's files
    revision: str | None  # the hub's commit that they are of; None where no hub said
    fingerprints: dict[str, str] = {}  # or frames, of those files, by name


@dataclass(frozen=True)
class SavedModel:
    """A model read from disk, ready to run."""

    model: GPT
    tokenizer: Tokenizer
    conversational: bool  # trained on conversations, so that it can be talked with


def write_model(folder: Path, model: GPT, tokenizer: Tokenizer, conversational: bool) -> None:
    """Write the files of a model directory."""
    (folder / CONFIG).write_text(json.dumps(config_fields(model, tokenizer), indent=2), "utf-8")
    write_generation(folder, tokenizer)
    tokenizer.save(folder, conversational)
    mx.save_safetensors(str(folder / MODEL), model.named_parameters(), {"format": "mlx"})


def write_generation(folder: Path, tokenizer: Tokenizer) -> None:
    """Write which tokens begin and end what a model writes, as transformers and mlx-lm read it."""
    stops = [tokenizer.special(ASSISTANT_END), tokenizer.special(BOS)]
    generation = {"bos_token_id": tokenizer.special(BOS), "eos_token_id": stops}
    (folder / GENERATION).write_text(json.dumps(generation, indent=2), "utf-8")


def config_fields(model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says of a model."""
    config = model.config
    fields: dict[str, Any] = {
        "model_type": MODEL_TYPES[config.era],
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.sequence_len,
        "intermediate_size": 4 * config.n_embd,
        "rope_theta": config.traits.rope_base,
        "rms_norm_eps": NORM_EPS,
        **{name: getattr(config, field) for name, field in OWN_FIELDS.items()},
        "bos_token_id": tokenizer.special(BOS),
        "eos_token_id": tokenizer.special(ASSISTANT_END),
        "tie_word_embeddings": False,
    }
    if config.era == "classic":
        fields["architectures"] = ["NanoChatForCausalLM"]  # what transformers calls it
    if formats := formats_of(model):
        fields[QUANTIZATION] = to_config(formats)
    return fields


def read_config(folder: Path) -> GPTConfig:
    """The shape of the model in a directory."""
    fields = _read_json(folder / CONFIG)
    eras = {model_type: era for era, model_type in MODEL_TYPES.items()}
    era = eras.get(str(fields.get("model_type")))
    if era is None:
        raise CheckpointError(
            f"{folder / CONFIG} is of a model of type {fields.get('model_type')!a:.99}.",
            f"Models of type {', '.join(eras)} can be used.",
        )
    own = OWN_FIELDS if era != "classic" else OWN_FIELDS.keys() & fields.keys()
    try:
        return GPTConfig(
            arch=ERAS[era].arch,
            era=era,
            **{OWN_FIELDS[name]: fields[name] for name in own},
            sequence_len=fields["max_position_embeddings"],
            vocab_size=fields["vocab_size"],
            n_layer=fields["num_hidden_layers"],
            n_head=fields["num_attention_heads"],
            n_kv_head=fields["num_key_value_heads"],
            n_embd=fields["hidden_size"],
        )
    except (KeyError, ValidationError) as error:
        raise damaged(folder / CONFIG, error) from error


def is_quantized(folder: Path) -> bool:
    """Whether the model in a directory is."""
    return _read_json(folder / CONFIG).get(QUANTIZATION) is not None


def read_model(folder: Path, dtype: mx.Dtype) -> SavedModel:
    """Read a model directory, quantized or not; ``dtype`` is that of the activations.

    Raises:
        MlxchatError: a file is missing or damaged, a tensor missing, unexpected or of another
            shape, or the tokenizer's vocabulary is not the model's. Each is named.
    """
    files = [folder / name for name in (CONFIG, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)]
    for file in [*files, *model_files(folder)]:
        if not file.exists():
            raise missing_file(file)
    for name in (TOKENIZER_FILE, GENERATION):
        check_file(folder / name)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, "
            f"the model {config.vocab_size:,}.",
            "Put back the tokenizer that the model was trained with.",
        )
    model = GPT(config, dtype)
    weights = read_model_arrays(folder)
    _quantize_as_stored(folder, model, weights)
    check_arrays(folder, weights, model.named_parameters())
    model.load_weights(list(weights.items()))
    conversational = "chat_template" in _read_json(folder / TOKENIZER_CONFIG_FILE)
    return SavedModel(model, tokenizer, conversational)


def load(folder: Path) -> SavedModel:
    """Read a model for inference: in this machine's dtype, with a bounded buffer cache.

    Raises:
        MlxchatError: as `read_model`.
    """
    bound_buffer_cache()
    saved = read_model(folder, machine().compute_dtype)
    saved.model.ready_to_infer()
    return saved


def _quantize_as_stored(folder: Path, model: GPT, weights: dict[str, mx.array]) -> None:
    """Make quantized layers of those that config.json says are; mlx-lm's rule: that have scales."""
    entry = _read_json(folder / CONFIG).get(QUANTIZATION)
    if entry is None:
        return
    layers = [layer.name for layer in quantizable(model.config)]
    try:
        common, others = from_config(entry)
        stored = [name for name in layers if f"{name}.scales" in weights]
        quantize_layers(model, {name: others.get(name, common) for name in stored})
    except ValueError as error:
        raise damaged(folder / CONFIG, error) from error


def write_trainer(
    folder: Path, state: TrainerState, optimizer: dict[str, mx.array], loader: LoaderState
) -> None:
    """Write what training needs to go on."""
    (folder / TRAINER).write_text(state.model_dump_json(indent=2), "utf-8")
    mx.save_safetensors(str(folder / OPTIMIZER), optimizer)
    arrays = {name: mx.array(values) for name, values in loader.to_arrays().items()}
    mx.save_safetensors(str(folder / LOADER), arrays)


def read_trainer(folder: Path) -> TrainerState:
    """The trainer's state in a saved step.

    Raises:
        MlxchatError: the model is quantized, the step is of another version or has no checksums, or
            a file is missing or damaged.
    """
    if is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized: there is nothing to go on training from.",
            "Train the run that it was made of, or name another one with `model_tag`.",
        )
    if (folder / ORIGIN).exists():
        raise CheckpointError(
            f"The model in {folder} was imported: there is no training of it to go on with.",
            "Begin with its weights: "
            f"{command('train', init_from=folder.parent.name)}, or "
            f"{command('sft', source=folder.parent.name)}",
        )
    fields = _read_json(folder / TRAINER)
    if fields.get("format") == FORMAT and not (folder / CHECKSUMS).exists():
        raise missing_file(folder / CHECKSUMS)
    if fields.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} was saved by another version of mlxchat "
            f"(format {fields.get('format')}, not {FORMAT}).",
            "Chat with it as it is; to train, name another run with `model_tag`, or set this one "
            "aside with `fresh`.",
        )
    try:
        return TrainerState.model_validate(fields)
    except ValidationError as error:
        raise damaged(folder / TRAINER, error) from error


def read_loader(folder: Path) -> LoaderState:
    """The loader's state in a saved step."""
    arrays = read_arrays(folder / LOADER)
    try:
        return LoaderState.from_arrays({name: np.array(a) for name, a in arrays.items()})
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(folder / LOADER, error) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise missing_file(path)
    check_file(path)
    return read_json(path)
