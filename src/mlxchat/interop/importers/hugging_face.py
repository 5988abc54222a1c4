"""Models in the hub's form: transformers' NanoChatForCausalLM, and mlx-lm's nanochat.

Both are safetensors with a config.json. mlx-lm uses nanochat's names, as mlxchat does for every
era. transformers renames the tensors; the table is that of its convert_nanochat_checkpoints.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.files import CONFIG, QUANTIZATION, damaged, read_json
from mlxchat.checkpoint.layout import (
    SOFTCAP_FIELD,
    model_files,
    open_arrays,
    open_unchecked,
)
from mlxchat.device_failures import explained
from mlxchat.errors import CheckpointError, command
from mlxchat.interop import nanochat_files
from mlxchat.interop.importers import model
from mlxchat.interop.importers.model import (
    Foreign,
    Tensor,
    configure,
    plain_tensors,
    require_vocabulary,
)
from mlxchat.model.config import VOCABULARY_MULTIPLE, GPTConfig
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import Tokenizer

# nanochat's names in a layer, and transformers'.
LAYER_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
PREFIXES = {"transformer.h.": "model.layers.", "transformer.wte.": "model.embed_tokens."}
BODY = ("layers.", "embed_tokens.")  # names that transformers may save without "model."

LARGEST_EPS = 1e-5  # of norms; those of torch, transformers and mlx-lm differ, all below this


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor of a safetensors file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    def read(self) -> mx.array:
        """Read its elements; no one else holds them."""
        array = open_unchecked(self.path)[self.name]
        try:
            with explained():
                mx.eval(array)
        except RuntimeError as error:
            raise damaged(self.path, str(error)) from error
        return array


def open_hugging_face(
    folder: Path, tokenizer: Path | None, softcap: float | None, conversational: bool | None
) -> Foreign:
    """Open a directory with a config.json; see `importers.open_model`."""
    path = folder / CONFIG
    fields = read_json(path)
    if any(fields.get(name) is not None for name in (QUANTIZATION, "quantization_config")):
        raise CheckpointError(
            f"The model in {folder} is quantized.",
            f"Talk to it as it is: {command('chat', checkpoint=folder)}. Or import the model it "
            "was made from.",
        )
    if fields.get(SOFTCAP_FIELD, 0.0) is None:
        raise _not_nanochats(path, SOFTCAP_FIELD, None)
    tensors = plain_tensors(folder, _tensors(folder))
    found = model.find_tokenizer(tokenizer, [folder])
    of_transformers = all(name.startswith(("model.", *BODY, "lm_head.")) for name in tensors)
    if of_transformers:
        tensors = {plain_name(name): tensor for name, tensor in tensors.items()}
    ours = layout.read_config(folder)
    _require_nanochat(path, fields, ours)
    config = configure(
        folder,
        path,
        {
            "window_pattern": ours.window_pattern,
            **{name: getattr(ours, name) for name in nanochat_files.FIELDS},
            "vocab_size": _vocabulary(found, ours.vocab_size),
        },
        tensors,
        ours.softcap if softcap is None else softcap,
    )
    if config.era != ours.era:
        raise damaged(path, f"it says {ours.era}, but the tensors are those of {config.era}")
    require_vocabulary(folder, found, config.vocab_size)
    if conversational is None:
        conversational = layout.has_chat_template(folder)
    return Foreign(
        path=folder,
        program="transformers" if of_transformers else "mlx-lm",
        step=0,
        name=folder.resolve().name,
        config=config,
        tensors=tensors,
        tokenizer=found,
        conversational=conversational,
    )


def renamed(name: str) -> str:
    """Return transformers' name for a parameter of nanochat's classic network."""
    return _renamed(name, {**PREFIXES, **LAYER_NAMES})


def plain_name(name: str) -> str:
    """Return nanochat's name for a parameter or module that has transformers' name."""
    if name.startswith(BODY):
        name = f"model.{name}"
    return _renamed(name, {there: here for here, there in {**PREFIXES, **LAYER_NAMES}.items()})


def _renamed(name: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        name = name.replace(before, after, 1)
    return name


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all files by name; their elements are not read."""
    tensors: dict[str, Tensor] = {}
    for file in model_files(folder):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing.", "Copy the model again from the original.")
        for name, array in open_arrays(file).items():
            if name in tensors:
                raise damaged(file, f"{name} is in another file too")
            tensors[name] = _Stored(file, name, array.shape, array.dtype)
    return tensors


def _vocabulary(tokenizer: Tokenizer, rows: int) -> int:
    """Return the tokenizer's size if ``rows`` is that size padded, else ``rows``."""
    padded = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return tokenizer.vocab_size if rows == padded else rows


def _require_nanochat(path: Path, fields: dict[str, Any], ours: GPTConfig) -> None:
    """Refuse a config that describes another network whose tensors would fit.

    Raises:
        CheckpointError: a field differs from nanochat's.
    """
    admitted: dict[str, tuple[object, ...]] = {
        "attention_bias": (None, False),
        "hidden_act": (None, "relu2"),
        "tie_word_embeddings": (None, False),
        "intermediate_size": (None, 4 * ours.n_embd),
        "head_dim": (None, ours.head_dim),
        "rope_theta": (None, ours.traits.rope_base),
    }
    rotary: dict[str, tuple[object, ...]] = {
        "rope_type": (None, "default"),
        "type": (None, "default"),
        "rope_theta": admitted["rope_theta"],
        "partial_rotary_factor": (None, 1.0),
    }
    said = dict(fields)
    for place in ("rope_parameters", "rope_scaling"):  # the first is the newer one
        values = said.pop(place, None) or {}
        if not isinstance(values, dict):
            raise _not_nanochats(path, place, values)
        said |= {f"{place}.{name}": value for name, value in values.items()}
        admitted |= {f"{place}.{name}": values for name, values in rotary.items()}
    for name, values in admitted.items():
        if said.get(name) not in values:
            raise _not_nanochats(path, name, said[name])
    eps = fields.get("rms_norm_eps", 0.0)
    if not isinstance(eps, int | float) or not 0 <= eps <= LARGEST_EPS:
        raise _not_nanochats(path, "rms_norm_eps", eps)


def _not_nanochats(path: Path, name: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name} is {value!a:.99}, which is not nanochat's.",
        "Use a model from nanochat's main branch.",
    )
