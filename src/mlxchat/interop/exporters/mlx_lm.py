"""Models for mlx-lm: classic ones as they are, others with the program that runs them.

mlx-lm knows the network of the first era. For others a config may name a file of Python
(``model_file``), which it runs when ``--trust-remote-code`` says so: `MODULE`.

Source: mlx_lm/utils.py and mlx_lm/models/nanochat.py of mlx-lm 0.32.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.interop.exporters.card import FOLDER, Shards, Usage
from mlxchat.model.config import GPTConfig
from mlxchat.tokenizer.bpe import BOS

MODULE = "mlxchat_model.py"
SOURCE = "mlxchat_model.py.txt"  # no module of ours: it is run by mlx-lm


def write(folder: Path, saved: SavedModel, history: History, shards: Shards) -> Usage:
    """Write the model's files; returns how they are used."""
    model, tokenizer = saved.model, saved.tokenizer
    fields = layout.config_fields(model, tokenizer)
    foreign = needs_module(model.config)
    if foreign:
        fields |= {"model_file": MODULE, **_network(model.config)}
        text = files("mlxchat.interop.exporters").joinpath(SOURCE).read_text("utf-8")
        (folder / MODULE).write_text(text, "utf-8")
    (folder / layout.CONFIG).write_text(json.dumps(fields, indent=2), "utf-8")
    layout.write_generation(folder, tokenizer)
    tokenizer.save(folder, saved.conversational)
    shards.write(folder, model.named_parameters(), "mlx")
    trust = " --trust-remote-code" if foreign else ""
    prompt = "Hello! Who are you?" if saved.conversational else f"{BOS}The capital of France is"
    commands = [
        "pip install mlx-lm",
        f'mlx_lm.generate --model {FOLDER}{trust} --prompt "{prompt}"',
    ]
    remark = ""
    if foreign:
        remark = (
            f"mlx-lm knows nanochat's network of October 2025 only: `{MODULE}`, which is in this "
            "directory, has this model's. `--trust-remote-code` lets mlx-lm run it."
        )
    elif not saved.conversational:
        remark = f"It continues a text, which begins with `{BOS}`."
    return Usage("bash", tuple(commands), remark)


def needs_module(config: GPTConfig) -> bool:
    """Whether mlx-lm does not know the network, and needs one of ours."""
    return config.era != "classic" or config.softcap != config.traits.softcaps[0]


def _network(config: GPTConfig) -> dict[str, Any]:
    """What the network does, in the words of `MODULE`."""
    channels, scale = config.traits.gate or (0, 1.0)
    layers = range(config.n_layer)
    return {
        "qk_scale": config.traits.qk_scale,
        "windows": [window if window < config.sequence_len else None for window in config.windows],
        "lambdas": list(config.traits.lambdas),
        "value_embedding_layers": [i for i in layers if config.has_value_embedding(i)],
        "gate_channels": channels,
        "gate_scale": scale,
        "smear": config.traits.smear,
    }
