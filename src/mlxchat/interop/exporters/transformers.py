"""Models for Hugging Face's transformers, which knows the network of nanochat's first era.

Source: configuration_nanochat.py and modeling_nanochat.py of transformers 5.
"""

import json
from pathlib import Path

from mlxchat.checkpoint import layout
from mlxchat.errors import CheckpointError
from mlxchat.interop.exporters.card import FOLDER, Usage
from mlxchat.interop.exporters.job import ExportJob
from mlxchat.interop.importers.hugging_face import renamed
from mlxchat.model.config import GPTConfig

_SHARED = (  # fields of config.json that have the same name here and there
    "model_type",
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "final_logit_softcapping",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)


def require_known(config: GPTConfig, quantize: str | None) -> None:
    """Check that transformers has such a network.

    Raises:
        CheckpointError: it has not.
    """
    if config.era != "classic":
        raise CheckpointError(
            "transformers only supports nanochat's classic network, and this model is of the era "
            f"{config.era!r}.",
            "Export it with `to=mlx-lm` or `to=nanochat`.",
        )


def write(folder: Path, job: ExportJob) -> None:
    """Write the model's files."""
    model, tokenizer = job.saved.model, job.saved.tokenizer
    ours = layout.config_fields(model, tokenizer)
    fields = {name: ours[name] for name in _SHARED} | {
        "dtype": str(model.lm_head.weight.dtype).removeprefix("mlx.core."),
        "hidden_act": "relu2",
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": ours["rope_theta"]},
        "pad_token_id": ours["bos_token_id"],
        "use_cache": True,
    }
    (folder / layout.CONFIG).write_text(json.dumps(fields, indent=2), "utf-8")
    layout.write_generation(folder, tokenizer)
    tokenizer.save(folder, job.saved.conversational)
    tensors = {renamed(name): array for name, array in model.named_parameters().items()}
    job.weights.write(folder, tensors, "pt")


def usage(job: ExportJob) -> Usage:
    """Return the lines of Python that run the model in transformers."""
    return Usage("python", _CONVERSATION if job.saved.conversational else _TEXT)


_LOAD = (
    "# pip install torch transformers",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    f"tokenizer = AutoTokenizer.from_pretrained({FOLDER})",
    f"model = AutoModelForCausalLM.from_pretrained({FOLDER})",
)
_WRITE = (
    "ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)",
    "print(tokenizer.decode(ids[0]))",
)
_CONVERSATION = (
    *_LOAD,
    'messages = [{"role": "user", "content": "Hello! Who are you?"}]',
    "inputs = tokenizer.apply_chat_template(",
    '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
    ")",
    *_WRITE,
)
_TEXT = (
    *_LOAD,
    'inputs = tokenizer("<|bos|>The capital of France is", return_tensors="pt")',
    'inputs.pop("token_type_ids", None)',
    *_WRITE,
)
