"""Models in the hub's form: transformers' NanoChatForCausalLM, and mlx-lm's nanochat.

Both are safetensors with a config.json. mlx-lm uses nanochat's names, as mlxchat does for every
era. transformers renames the tensors; the table is that of its convert_nanochat_checkpoints.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.files import CONFIG, QUANTIZATION, damaged, read_json
from mlxchat.checkpoint.layout import model_files, open_arrays, open_unchecked
from mlxchat.device_failures import explained
from mlxchat.errors import CheckpointError, command
from mlxchat.interop import nanochat_files
from mlxchat.interop.importers import model
from mlxchat.interop.importers.model import Foreign, Tensor, configure, require_vocabulary
from mlxchat.model.config import VOCABULARY_MULTIPLE, GPTConfig
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import TOKENIZER_CONFIG_FILE, Tokenizer

TEMPLATE_FILE = "chat_template.jinja"

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
    if QUANTIZATION in fields or "quantization_config" in fields:
        raise CheckpointError(
            f"The model in {folder} is quantized.",
            f"Talk to it as it is: {command('chat', checkpoint=folder)}; or import the "
            "model that it was made of.",
        )
    tensors, found = _tensors(folder), model.find_tokenizer(tokenizer, [folder])
    of_transformers = all(name.startswith(("model.", "lm_head.")) for name in tensors)
    if of_transformers:
        tensors = {_plain(name): tensor for name, tensor in tensors.items()}
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
        raise damaged(path, f"it says {ours.era}, the tensors are of {config.era}")
    require_vocabulary(folder, found, config.vocab_size)
    if conversational is None:
        conversational = _has_template(folder)
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


def _plain(name: str) -> str:
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
            raise CheckpointError(
                f"{file} is missing.", "Copy the model again from where it was made."
            )
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
    rotary = fields.get("rope_parameters") or {}
    if not isinstance(rotary, dict):
        rotary = {"rope_theta": rotary}
    theta = ours.traits.rope_base
    said = {**fields, **{f"rope_parameters.{name}": value for name, value in rotary.items()}}
    admitted: dict[str, tuple[object, ...]] = {
        "attention_bias": (None, False),
        "hidden_act": (None, "relu2"),
        "tie_word_embeddings": (None, False),
        "intermediate_size": (None, 4 * ours.n_embd),
        "head_dim": (None, ours.head_dim),
        "rope_theta": (None, theta),
        "rope_scaling": (None,),
        "rope_parameters.rope_theta": (None, theta),
        "rope_parameters.rope_type": (None, "default"),
        "rope_parameters.partial_rotary_factor": (None, 1.0),
    }
    wrong = [name for name, values in admitted.items() if said.get(name) not in values]
    eps = fields.get("rms_norm_eps", 0.0)
    if not isinstance(eps, int | float) or not 0 <= eps <= LARGEST_EPS:
        wrong.append("rms_norm_eps")
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong[0]} is {said[wrong[0]]!a:.99}, which is not nanochat's.",
            "Give a model of nanochat's main branch.",
        )


def _has_template(folder: Path) -> bool:
    path = folder / TOKENIZER_CONFIG_FILE
    return (folder / TEMPLATE_FILE).exists() or (
        path.exists() and "chat_template" in read_json(path)
    )
