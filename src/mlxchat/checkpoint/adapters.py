"""An adapter's own files, in the form of mlx-lm.

    adapters.safetensors   its arrays
    adapter_config.json    its rank, scale and kind, and which layers it changes

Of adapter_config.json mlx-lm reads ``fine_tune_type``, ``num_layers`` and ``lora_parameters``; so
does this module.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlxchat.checkpoint.files import damaged, read_checked_json
from mlxchat.errors import MlxchatError
from mlxchat.json_text import as_type
from mlxchat.model.adapter import LoraConfig, adapted_layers, module_of
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.lora import adapter_arrays
from mlxchat.runtime import mx

ADAPTER_FILE = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def write_adapter(folder: Path, model: GPT, base: str) -> None:
    """Write the two files of a model's adapter into a directory.

    Args:
        folder: the directory.
        model: a model with an adapter.
        base: the directory of the model without it, for people who read the file.
    """
    assert model.adapter is not None
    fields = adapter_fields(model.config, model.adapter) | {"model": base}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2), "utf-8")
    mx.save_safetensors(str(folder / ADAPTER_FILE), adapter_arrays(model), {"format": "mlx"})


def adapter_fields(config: GPTConfig, lora: LoraConfig) -> dict[str, Any]:
    """Return what mlx-lm reads of an adapter_config.json."""
    layers = adapted_layers(config, lora)
    keys = dict.fromkeys(map(module_of, layers))
    return {
        "fine_tune_type": "dora" if lora.dora else "lora",
        "num_layers": lora.layers or config.n_layer,
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": list(keys),
        },
    }


def read_lora_config(folder: Path, config: GPTConfig) -> LoraConfig:
    """Read an adapter_config.json, of this program or of mlx-lm.

    Args:
        folder: the adapter's directory.
        config: the shape of the model that it belongs to.

    Raises:
        CheckpointError: the file is missing or damaged, or of a kind of adapter that is not known.
        ConfigError: the model has not the layers that it names.
    """
    path = folder / ADAPTER_CONFIG
    fields = read_checked_json(path)
    kind, parameters = fields.get("fine_tune_type", "lora"), fields.get("lora_parameters")
    if kind not in ("lora", "dora") or not isinstance(parameters, dict):
        raise damaged(path, "it does not belong to a LoRA or DoRA adapter")
    layers = fields.get("num_layers")
    found = {name: parameters[name] for name in ("rank", "scale", "dropout") if name in parameters}
    found["modules"] = parameters.get("keys")
    found["layers"] = layers if type(layers) is int and layers < config.n_layer else None
    found["dora"] = kind == "dora"
    try:
        lora = as_type(found, TypeAdapter(LoraConfig))
        adapted_layers(config, lora)
    except ValidationError as error:
        raise damaged(path, error) from error
    except MlxchatError as error:
        raise damaged(path, error.problem) from error
    return lora
