"""Models as the hub has them: transformers' NanoChatForCausalLM, and mlx-lm's nanochat.

Both are safetensors with a config.json; mlx-lm's have nanochat's names, and so have those that
mlxchat writes, of every era. transformers' are renamed: the table is that of its
convert_nanochat_checkpoints.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.ckpt import checksums, layout, nanochat
from mlxchat.ckpt.catalog import CONFIG, QUANTIZATION
from mlxchat.ckpt.foreign import damaged
from mlxchat.ckpt.importers import tokenizers
from mlxchat.ckpt.importers.foreign_model import (
    Foreign,
    Tensor,
    configure,
    read_json,
    require_vocabulary,
)
from mlxchat.data.tokenizer import CONFIG_FILE, Tokenizer
from mlxchat.errors import MlxchatError
from mlxchat.model.config import VOCABULARY_MULTIPLE
from mlxchat.model.eras import CLASSIC
from mlxchat.runtime import mx

INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"

# By name here and there, of a layer; with the layers' own prefixes before them.
LAYER = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
PREFIXES = {"transformer.h.": "model.layers.", "transformer.wte.": "model.embed_tokens."}

_FIXED = {  # what nanochat's network is, where a config says it
    "attention_bias": False,
    "hidden_act": "relu2",
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor of a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    def read(self) -> mx.array:
        """Its elements, held by nobody else."""
        array = _load(self.path)[self.name]
        try:
            mx.eval(array)
        except RuntimeError as error:
            raise damaged(self.path, str(error)) from error
        return array


def open_model(
    folder: Path, tokenizer: Path | None, softcap: float | None, conversational: bool | None
) -> Foreign:
    """A model of the hub's; see `importers.open_model`."""
    path = folder / CONFIG
    fields = read_json(path)
    if QUANTIZATION in fields or "quantization_config" in fields:
        raise MlxchatError(
            f"The model in {folder} is quantized.",
            f"Talk to it as it is: mlxchat chat --checkpoint {folder}; or import the model that it "
            "was made of.",
        )
    tensors, found = _tensors(folder), tokenizers.find(tokenizer, [folder])
    renamed = all(name.startswith(("model.", "lm_head.")) for name in tensors)
    if renamed:
        tensors = {_plain(name): tensor for name, tensor in tensors.items()}
    ours = layout.read_config(folder)
    if ours.era == CLASSIC.name:
        _require_classic(path, fields)
    config = configure(
        path,
        {
            "window_pattern": ours.window_pattern,
            **{name: getattr(ours, name) for name in nanochat.FIELDS},
            "vocab_size": _vocabulary(found, ours.vocab_size),
        },
        tensors,
        ours.softcap if softcap is None else softcap,
    )
    if config.era != ours.era:
        raise damaged(path, f"it says {ours.era}, the tensors are of {config.era}")
    require_vocabulary(folder, found, config.vocab_size)
    if conversational is None:
        conversational = _has_template(folder)
    return Foreign(
        path=folder,
        program="transformers" if renamed else "mlx-lm",
        step=0,
        name=folder.resolve().name,
        config=config,
        tensors=tensors,
        tokenizer=found,
        conversational=conversational,
    )


def renamed(name: str) -> str:
    """What transformers calls a parameter of nanochat's classic network."""
    return _renamed(name, {**PREFIXES, **LAYER})


def _plain(name: str) -> str:
    return _renamed(name, {there: here for here, there in {**PREFIXES, **LAYER}.items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        name = name.replace(before, after, 1)
    return name


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Of all files that the index names, or of the only one."""
    files = [folder / layout.MODEL]
    if (folder / INDEX).exists():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(map(_is_name, listed.values())):
            raise damaged(folder / INDEX, "no weight_map of files in the same folder")
        files = [folder / name for name in sorted(set(listed.values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read(file).items():
            if name in tensors:
                raise damaged(file, f"{name} is in another file too")
            tensors[name] = tensor
    return tensors


def _read(file: Path) -> dict[str, _Stored]:
    """The tensors of a file; their elements are not read."""
    if not file.is_file():
        raise MlxchatError(f"{file} is missing.", "Copy the model again from where it was made.")
    checksums.check(file)
    arrays = _load(file).items()
    return {name: _Stored(file, name, array.shape, array.dtype) for name, array in arrays}


def _load(file: Path) -> dict[str, mx.array]:
    """Arrays that MLX will read when they are evaluated."""
    try:
        arrays = mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        raise damaged(file, str(error)) from error
    if not isinstance(arrays, dict):
        raise damaged(file, "not a table of tensors")
    return arrays


def _is_name(file: object) -> bool:
    return isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) is not None


def _vocabulary(tokenizer: Tokenizer, rows: int) -> int:
    """The tokenizer's, where the config counts the rows that pad it too."""
    padded = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return tokenizer.vocab_size if rows == padded else rows


def _require_classic(path: Path, fields: dict[str, Any]) -> None:
    """A config may say what no nanochat is.

    Raises:
        MlxchatError: it does.
    """
    rotary = fields.get("rope_parameters")
    nested = rotary.get("rope_theta") if isinstance(rotary, dict) else rotary
    rope_theta = fields.get("rope_theta") or nested
    said = {**{name: fields.get(name) for name in _FIXED}, "rope_theta": rope_theta}
    for name, value in {**_FIXED, "rope_theta": CLASSIC.rope_base}.items():
        if said[name] is not None and said[name] != value:
            raise MlxchatError(
                f"{path}: {name} is {said[name]!a:.99}; nanochat's is {value}.",
                "Give a model of nanochat's main branch.",
            )


def _has_template(folder: Path) -> bool:
    path = folder / CONFIG_FILE
    return (folder / TEMPLATE).exists() or (path.exists() and "chat_template" in read_json(path))
