"""A model's directory: its files, and how a model is written to them and read back.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
    origin.json     where an imported model is from
    saved.json      when it was saved
    SHA256SUMS      checksums of all files

An adapter's directory has `mlxchat.checkpoint.adapters` and `mlxchat.checkpoint.bases` in place of
the model's weights, and is read like any other: its model, and the adapter on it.

mlx-lm reads the first line too. A checkpoint has more files: see `mlxchat.checkpoint.trainer` and
`mlxchat.checkpoint.history`. Where there are checksums, each file is compared with its own before
it is used; a directory that another program made has none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mlxchat.checkpoint import adapters
from mlxchat.checkpoint.bases import BaseRecord, is_adapter, read_base_record, require_base
from mlxchat.checkpoint.files import CONFIG as CONFIG
from mlxchat.checkpoint.files import INDEX as INDEX
from mlxchat.checkpoint.files import MODEL as MODEL
from mlxchat.checkpoint.files import ORIGIN as ORIGIN
from mlxchat.checkpoint.files import QUANTIZATION, damaged, missing_file, verify_file
from mlxchat.checkpoint.files import TRAINER as TRAINER
from mlxchat.checkpoint.files import model_files as model_files
from mlxchat.checkpoint.files import read_checked_json as read_checked_json
from mlxchat.checkpoint.files import read_record as read_record
from mlxchat.checkpoint.stamp import verify_stamp
from mlxchat.checkpoint.weights import check_arrays as check_arrays
from mlxchat.checkpoint.weights import open_arrays as open_arrays
from mlxchat.checkpoint.weights import open_unchecked as open_unchecked
from mlxchat.checkpoint.weights import read_arrays as read_arrays
from mlxchat.checkpoint.weights import read_model_arrays as read_model_arrays
from mlxchat.errors import CheckpointError
from mlxchat.json_text import as_type
from mlxchat.model.config import ERAS, EraName, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import copied, load_adapter, prepare_together
from mlxchat.model.norm import NORM_EPS
from mlxchat.model.quantization import from_config, quantizable, to_config
from mlxchat.model.quantized import formats_of, quantize_layers
from mlxchat.runtime import bound_buffer_cache, compute_dtype, mx
from mlxchat.tokenizer.bpe import (
    ASSISTANT_END,
    BOS,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    Tokenizer,
)

GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"  # of transformers; else it is in the tokenizer's settings
DEFAULT_CONTEXT = 2048  # that of transformers and mlx-lm
MODEL_TYPES: dict[EraName, str] = {  # mlx-lm and transformers know the first
    era: "nanochat" if era == "classic" else f"nanochat_{era}" for era in ERAS
}
SOFTCAP_FIELD = "final_logit_softcapping"
OWN_FIELDS = {  # names in config.json and in `GPTConfig`; optional in classic models only
    "window_pattern": "window_pattern",
    "vocab_multiple": "vocab_multiple",
    SOFTCAP_FIELD: "softcap",
}


@dataclass(frozen=True)
class SavedModel:
    """A model that was read from its directory, perhaps with an adapter on it."""

    model: GPT
    tokenizer: Tokenizer
    conversational: bool  # trained on conversations: it answers, and does not just continue
    base: BaseRecord | None = None  # the model that its adapter was trained on


def write_saved(folder: Path, saved: SavedModel) -> None:
    """Write a model's files, or those of the adapter on it, without checksums, into a directory."""
    if saved.base is None:
        write_model(folder, saved.model, saved.tokenizer, saved.conversational)
    else:
        write_adapted(folder, saved.model, saved.tokenizer, saved.conversational, saved.base)


def write_model(folder: Path, model: GPT, tokenizer: Tokenizer, conversational: bool) -> None:
    """Write a model's files, without origin and checksums, into a directory."""
    (folder / CONFIG).write_text(json.dumps(config_fields(model, tokenizer), indent=2), "utf-8")
    write_generation(folder, tokenizer)
    tokenizer.save(folder, conversational)
    mx.save_safetensors(str(folder / MODEL), model.named_parameters(), {"format": "mlx"})


def write_adapted(
    folder: Path, model: GPT, tokenizer: Tokenizer, conversational: bool, base: BaseRecord
) -> None:
    """Write the files of a model's adapter, without checksums, into a directory.

    Args:
        folder: the directory.
        model: a model with an adapter.
        tokenizer: the model's.
        conversational: whether the adapter was trained on conversations.
        base: the model without the adapter.
    """
    shape = {n: v for n, v in config_fields(model, tokenizer).items() if n != QUANTIZATION}
    (folder / CONFIG).write_text(json.dumps(shape, indent=2), "utf-8")
    write_generation(folder, tokenizer)
    tokenizer.save(folder, conversational)
    adapters.write_adapter(folder, model, base.folder)
    base.write(folder)


def write_generation(folder: Path, tokenizer: Tokenizer) -> None:
    """Write generation_config.json: the tokens that begin and end a text, for other programs."""
    stops = [tokenizer.special(ASSISTANT_END), tokenizer.special(BOS)]
    generation = {"bos_token_id": tokenizer.special(BOS), "eos_token_id": stops}
    (folder / GENERATION).write_text(json.dumps(generation, indent=2), "utf-8")


def config_fields(model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the contents of a model's config.json."""
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
    """Read the shape of the model in a directory.

    Raises:
        CheckpointError: config.json is missing, damaged or of another kind of model.
    """
    fields = read_checked_json(folder / CONFIG)
    eras = {model_type: era for era, model_type in MODEL_TYPES.items()}
    era = eras.get(str(fields.get("model_type")))
    if era is None:
        raise CheckpointError(
            f"{folder / CONFIG} describes a model of type {fields.get('model_type')!a:.99}.",
            f"Use a model of type {', '.join(eras)}.",
        )
    own = [name for name in OWN_FIELDS if era != "classic" or _is_given(fields, name)]
    try:
        heads, kv_heads = fields["num_attention_heads"], fields.get("num_key_value_heads")
        shape = {
            "arch": ERAS[era].arch,
            "era": era,
            **{OWN_FIELDS[name]: fields[name] for name in own},
            "sequence_len": fields.get("max_position_embeddings", DEFAULT_CONTEXT),
            "vocab_size": fields["vocab_size"],
            "n_layer": fields["num_hidden_layers"],
            "n_head": heads,
            "n_kv_head": heads if kv_heads is None else kv_heads,
            "n_embd": fields["hidden_size"],
        }
        return as_type(shape, TypeAdapter(GPTConfig))
    except (KeyError, ValidationError) as error:
        raise damaged(folder / CONFIG, error) from error


def _is_given(fields: Mapping[str, Any], name: str) -> bool:
    """Return whether a field is given; null counts where it means that logits have no bound."""
    return name in fields and (fields[name] is not None or name == SOFTCAP_FIELD)


def has_chat_template(folder: Path) -> bool:
    """Tell whether the tokenizer in a model's directory renders conversations.

    It does if the model was trained on conversations. An empty template does not count.

    Raises:
        CheckpointError: a file is damaged.
    """
    settings, own_file = folder / TOKENIZER_CONFIG_FILE, folder / TEMPLATE
    if settings.exists() and read_checked_json(settings).get("chat_template"):
        return True
    return own_file.is_file() and bool(own_file.read_bytes().strip())


def is_quantized(folder: Path) -> bool:
    """Tell whether the model in a directory is quantized."""
    return read_checked_json(folder / CONFIG).get(QUANTIZATION) is not None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a model, those of an adapter's base among them.

    Raises:
        CheckpointError: as `model_files`, or the base is nowhere to be found.
    """
    if not is_adapter(folder):
        return model_files(folder)
    return [folder / adapters.ADAPTER_FILE, *model_files(require_base(folder))]


def read_model(folder: Path, dtype: mx.Dtype, base: Path | None = None) -> SavedModel:
    """Read a model, quantized or not, or an adapter and the model that it belongs to.

    Args:
        folder: the directory of the model, or of the adapter.
        dtype: the dtype of the activations.
        base: the directory of the model to put the adapter on, whatever its weights; by default
            the one that it was trained on.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, unexpected or has
            another shape; the tokenizer's vocabulary is not the model's; or the model that an
            adapter belongs to is not there. Each is named.
    """
    if not is_adapter(folder):
        return _read_whole(folder, dtype)
    return read_adapter(folder, _read_whole(base or require_base(folder), dtype).model)


def is_saved_in(folder: Path, saved: SavedModel) -> bool:
    """Tell whether a model in memory is the one in a directory: its shape, vocabulary and weights.

    Args:
        folder: the directory.
        saved: a model that is not prepared for inference.

    Raises:
        CheckpointError: as `read_model`.
    """
    there = read_model(folder, saved.model.dtype)
    ours, theirs = saved.model.named_parameters(), there.model.named_parameters()
    if (
        there.model.config != saved.model.config
        or there.tokenizer.ranks != saved.tokenizer.ranks
        or ours.keys() != theirs.keys()
    ):
        return False
    del there  # each array is read when it is compared, and then let go
    return all(_are_equal(array, theirs.pop(name)) for name, array in ours.items())


def _are_equal(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and bool(mx.array_equal(a, b, equal_nan=True).item())


def read_adapter(folder: Path, model: GPT) -> SavedModel:
    """Read an adapter, and put it on a model, in place, whatever the model's weights.

    Args:
        folder: the directory of the adapter.
        model: a model without an adapter, not prepared for inference.

    Raises:
        CheckpointError: a file is missing or damaged, or the model has another shape than the
            adapter's own.
    """
    config, tokenizer = _read_beginning(folder, [folder / adapters.ADAPTER_FILE])
    lora = adapters.read_lora_config(folder, config)
    if model.config != config:
        raise CheckpointError(
            f"{folder} is an adapter for a model of another shape.",
            "Use it with the model it was trained on.",
        )
    arrays = read_arrays(folder / adapters.ADAPTER_FILE)
    try:
        load_adapter(model, lora, arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error.problem}", error.remedy) from error
    return SavedModel(model, tokenizer, has_chat_template(folder), read_base_record(folder))


def _read_whole(folder: Path, dtype: mx.Dtype) -> SavedModel:
    """Read the model in a directory that holds all of it."""
    config, tokenizer = _read_beginning(folder, model_files(folder))
    model = GPT(config, dtype)
    weights = read_model_arrays(folder)
    _quantize_as_stored(folder, model, weights)
    check_arrays(folder, weights, model.named_parameters())
    model.load_weights(list(weights.items()))
    return SavedModel(model, tokenizer, has_chat_template(folder))


def _read_beginning(folder: Path, weight_files: list[Path]) -> tuple[GPTConfig, Tokenizer]:
    """Check that a directory is complete, and read the model's shape and its tokenizer."""
    for name in (CONFIG, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        if not (folder / name).exists():
            raise missing_file(folder / name)
    for file in weight_files:
        if not file.exists():
            raise missing_file(file)
    for name in (TOKENIZER_FILE, GENERATION):
        verify_file(folder / name)
    verify_stamp(folder)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, "
            f"the model {config.vocab_size:,}.",
            "Restore the tokenizer that the model was trained with.",
        )
    return config, tokenizer


def load_for_inference(folder: Path, dtype: str = "auto") -> SavedModel:
    """Read a model for inference, with a bounded buffer cache.

    Args:
        folder: the model's directory.
        dtype: the precision to compute in, a key of `mlxchat.runtime.DTYPES` or auto.

    Raises:
        MlxchatError: as `read_model`.
    """
    bound_buffer_cache()
    saved = read_model(folder, compute_dtype(dtype))
    saved.model.prepare_for_inference()
    return saved


def load_adapters_for_inference(
    base: SavedModel, folders: Mapping[str, Path]
) -> dict[str, SavedModel]:
    """Read several adapters of one model for inference; its weights are held once.

    Args:
        base: the model, which is prepared for inference too.
        folders: the directories of the adapters, by any names.

    Raises:
        MlxchatError: as `read_adapter`.
    """
    adapted = {name: read_adapter(folder, copied(base.model)) for name, folder in folders.items()}
    prepare_together(base.model, [saved.model for saved in adapted.values()])
    return adapted


def _quantize_as_stored(folder: Path, model: GPT, weights: dict[str, mx.array]) -> None:
    """Replace the layers that are stored quantized: by mlx-lm's rule, those that have scales."""
    entry = read_checked_json(folder / CONFIG).get(QUANTIZATION)
    if entry is None:
        return
    layers = [layer.name for layer in quantizable(model.config)]
    try:
        common, others = from_config(entry)
        stored = [name for name in layers if f"{name}.scales" in weights]
        quantize_layers(model, {name: others.get(name, common) for name in stored})
    except ValueError as error:
        raise damaged(folder / CONFIG, error) from error


# Small JSON files


class Origin(BaseModel):
    """The place that an imported model is from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str  # the one that wrote it
    path: str
    step: int
    bits_per_byte: float | None = None  # on validation text, as that program measured it

    def write(self, folder: Path) -> None:
        """Write it into the directory of the imported model."""
        (folder / ORIGIN).write_text(self.model_dump_json(indent=2), "utf-8")


def read_origin(folder: Path) -> Origin | None:
    """Read where the model in a directory is from; None if it was not imported.

    Raises:
        CheckpointError: the file is damaged.
    """
    return read_record(folder / ORIGIN, Origin)
