"""Models for nanochat itself: a folder that can be its NANOCHAT_BASE_DIR."""

import json
import shlex
from pathlib import Path
from typing import Any

from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.errors import CheckpointError
from mlxchat.interop import nanochat_files, torch_file
from mlxchat.interop.exporters.card import FOLDER, Shards, Usage
from mlxchat.model.config import EraName, GPTConfig
from mlxchat.runtime import mx

COMMITS: dict[tuple[EraName, float], str] = {  # of nanochat, by era and bound of the logits
    ("classic", 15.0): "dfc8833",
    ("lambdas", 15.0): "184d4c1",
    ("values", 15.0): "9a88194",
    ("gates_32", 15.0): "83dccc2",
    ("gates_32", 20.0): "1076f97",
    ("gates_12", 15.0): "f068604",
    ("modern", 15.0): "92d63d4",
}
# Later ones have a script that makes samples of a base model without its dataset.
_CHAT_ONLY: tuple[EraName, ...] = ("classic", "lambdas", "values")


def require_known(config: GPTConfig) -> None:
    """Check that there was a nanochat with such a network.

    Raises:
        MlxchatError: its softcap is one that nanochat never had with it.
    """
    if (config.era, config.softcap) not in COMMITS:
        raise CheckpointError(
            f"No nanochat of the era {config.era!r} caps its logits at {config.softcap:g}.",
            "Export it `to=mlx-lm`.",
        )


def write(folder: Path, saved: SavedModel, history: History, shards: Shards) -> Usage:
    """Write the model's files; returns how they are used."""
    config, tokenizer, step = saved.model.config, saved.tokenizer, history.step
    stage = nanochat_files.CHAT if saved.conversational else nanochat_files.BASE
    checkpoints = folder / stage / history.tag
    checkpoints.mkdir(parents=True)
    fields = (
        nanochat_files.FIELDS
        if config.era == "classic"
        else (*nanochat_files.FIELDS, nanochat_files.WINDOWS)
    )
    meta: dict[str, Any] = {
        "step": step,
        "val_bpb": history.bits_per_byte,
        "model_config": {name: getattr(config, name) for name in fields},
        "user_config": {},
    }
    (checkpoints / nanochat_files.meta_file(step)).write_text(json.dumps(meta, indent=2), "utf-8")
    tensors = saved.model.named_parameters()
    torch_file.write(checkpoints / nanochat_files.model_file(step), tensors)
    size = sum(array.nbytes for array in tensors.values())
    shards.report(size, size)

    beside = folder / nanochat_files.TOKENIZER_FOLDER
    beside.mkdir()
    nanochat_files.write(beside / nanochat_files.TOKENIZER, tokenizer)
    torch_file.write(
        beside / nanochat_files.TOKEN_BYTES, mx.array(tokenizer.byte_lengths(), dtype=mx.int32)
    )
    commit = COMMITS[config.era, config.softcap]
    tag = shlex.quote(history.tag)
    if saved.conversational:
        command = f"chat_cli -i sft -g {tag}"
    elif config.era in _CHAT_ONLY:
        command = f"chat_cli -i base -g {tag}"
    else:
        command = f"base_eval --eval sample --model-tag={tag}"
    return Usage(
        "bash",
        (
            "git clone https://github.com/karpathy/nanochat && cd nanochat",
            f"git checkout {commit}",
            f"NANOCHAT_BASE_DIR={FOLDER} python -m scripts.{command}",
        ),
        f"nanochat at commit {commit} loads it; at others its network may be another.",
    )
