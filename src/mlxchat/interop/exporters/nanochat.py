"""Models for nanochat itself: a folder that can serve as its NANOCHAT_BASE_DIR."""

import json
import shlex
from pathlib import Path
from typing import Any

from mlxchat.errors import CheckpointError
from mlxchat.interop import nanochat_files, torch_file
from mlxchat.interop.exporters.card import FOLDER, Usage
from mlxchat.interop.exporters.job import ExportJob
from mlxchat.model.config import EraName, GPTConfig
from mlxchat.runtime import mx

COMMITS: dict[tuple[EraName, float], str] = {  # nanochat's, by era and softcap
    ("classic", 15.0): "dfc8833",
    ("lambdas", 15.0): "184d4c1",
    ("values", 15.0): "9a88194",
    ("gates_32", 15.0): "83dccc2",
    ("gates_32", 20.0): "1076f97",
    ("gates_12", 15.0): "f068604",
    ("modern", 15.0): "92d63d4",
}
# Later commits have a script that samples from a base model without its dataset.
_CHAT_ONLY: tuple[EraName, ...] = ("classic", "lambdas", "values")


def require_known(config: GPTConfig, quantize: str | None) -> None:
    """Check that some commit of nanochat has this network.

    Raises:
        CheckpointError: none has this softcap in this era.
    """
    if (config.era, config.softcap) not in COMMITS:
        raise CheckpointError(
            f"No version of nanochat of the era {config.era!r} has a softcap of "
            f"{config.softcap:g}.",
            "Export it with `to=mlx-lm`.",
        )


def write(folder: Path, job: ExportJob) -> None:
    """Write the model's files."""
    saved, history = job.saved, job.history
    config, tokenizer, step = saved.model.config, saved.tokenizer, history.step
    stage = nanochat_files.CHAT if saved.conversational else nanochat_files.BASE
    checkpoints = folder / stage / history.tag
    checkpoints.mkdir(parents=True)
    fields = (
        nanochat_files.FIELDS
        if config.era == "classic"
        else (*nanochat_files.FIELDS, nanochat_files.WINDOWS_FIELD)
    )
    meta: dict[str, Any] = {
        "step": step,
        "val_bpb": history.bits_per_byte,
        "model_config": {name: getattr(config, name) for name in fields},
        "user_config": {},
    }
    (checkpoints / nanochat_files.meta_file(step)).write_text(json.dumps(meta, indent=2), "utf-8")
    tensors = saved.model.named_parameters()
    torch_file.write_torch(checkpoints / nanochat_files.model_file(step), tensors)
    size = sum(array.nbytes for array in tensors.values())
    job.weights.report(size, size)

    beside = folder / nanochat_files.TOKENIZER_FOLDER
    beside.mkdir()
    nanochat_files.write_tokenizer(beside / nanochat_files.TOKENIZER, tokenizer)
    torch_file.write_torch(
        beside / nanochat_files.TOKEN_BYTES, mx.array(tokenizer.byte_lengths(), dtype=mx.int32)
    )


def usage(job: ExportJob) -> Usage:
    """Return the commands that get the right commit of nanochat and run the model."""
    config = job.saved.model.config
    commit = COMMITS[config.era, config.softcap]
    tag = shlex.quote(job.history.tag)
    if job.saved.conversational:
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
        f"nanochat can load it at commit {commit}; at other commits its network may differ.",
    )
