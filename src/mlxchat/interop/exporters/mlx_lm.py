"""Models for mlx-lm: classic ones as they are, others with a Python file that has their network.

mlx-lm knows the network of nanochat's first era only. For another network config.json may name a
Python file (``model_file``, here `MODULE`), which mlx-lm runs under ``--trust-remote-code``.

Source: mlx_lm/utils.py and mlx_lm/models/nanochat.py of mlx-lm 0.32.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlxchat.checkpoint import layout
from mlxchat.interop.exporters.card import FOLDER, Usage
from mlxchat.interop.exporters.job import ExportJob
from mlxchat.model.config import NO_WINDOW, GPTConfig
from mlxchat.tokenizer.bpe import BOS

MODULE = "mlxchat_model.py"
SOURCE = "mlxchat_model.py.txt"  # not a module of this package: mlx-lm runs it


def require_known(config: GPTConfig, quantize: str | None) -> None:
    """Accept every model: the exported files have the network of any that mlx-lm does not know."""


def write(folder: Path, job: ExportJob) -> None:
    """Write the model's files."""
    model, tokenizer = job.saved.model, job.saved.tokenizer
    fields = layout.config_fields(model, tokenizer)
    if needs_module(model.config):
        fields |= {"model_file": MODULE, **_network(model.config)}
        text = files("mlxchat.interop.exporters").joinpath(SOURCE).read_text("utf-8")
        (folder / MODULE).write_text(text, "utf-8")
    (folder / layout.CONFIG).write_text(json.dumps(fields, indent=2), "utf-8")
    layout.write_generation(folder, tokenizer)
    tokenizer.save(folder, job.saved.conversational)
    job.weights.write(folder, model.named_parameters(), "mlx")


def usage(job: ExportJob) -> Usage:
    """Return the commands that run the model in mlx-lm."""
    foreign = needs_module(job.saved.model.config)
    trust = " --trust-remote-code" if foreign else ""
    prompt = "Hello! Who are you?" if job.saved.conversational else f"{BOS}The capital of France is"
    commands = [
        "pip install mlx-lm",
        f'mlx_lm.generate --model {FOLDER}{trust} --prompt "{prompt}"',
    ]
    remark = ""
    if foreign:
        remark = (
            f"mlx-lm itself only has nanochat's network of October 2025, so `{MODULE}` in this "
            "directory provides this model's network. `--trust-remote-code` lets mlx-lm run it."
        )
    elif not job.saved.conversational:
        remark = f"It continues text, which must begin with `{BOS}`."
    return Usage("bash", tuple(commands), remark)


def needs_module(config: GPTConfig) -> bool:
    """Return whether mlx-lm does not know the network and needs `MODULE`."""
    return config.era != "classic" or config.softcap != config.traits.softcaps[0]


def _network(config: GPTConfig) -> dict[str, Any]:
    """Return the fields of config.json that `MODULE` reads."""
    channels, scale = config.traits.gate or (0, 1.0)
    layers = range(config.n_layer)
    return {
        "qk_scale": config.traits.qk_scale,
        "windows": [None if window == NO_WINDOW else window for window in config.windows],
        "lambdas": list(config.traits.lambdas),
        "value_embedding_layers": [i for i in layers if config.has_value_embedding(i)],
        "gate_channels": channels,
        "gate_scale": scale,
        "smear": config.traits.smear_and_backout,
    }
