"""Checkpoints as other programs write them, of nanochat's own reference weights.

These have 97 tokens, fewer than a tokenizer can have. Rows are added to the tables, whose logits
come behind the first 97 and change none of them.
"""

import json
from pathlib import Path
from typing import Any

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.interop import nanochat_files, torch_file
from mlxchat.interop.importers import open_model
from mlxchat.interop.importers.model import read_network
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from support.cases import GOLDEN, golden
from support.models import BYTES

KNOWN = 97  # tokens of the reference
ROWS = {"classic": 265, "modern": 320}  # of the tables: the modern ones are padded to 64
TABLES = ("transformer.wte.", "lm_head.", "value_embeds.")


def weights(arch: str) -> dict[str, mx.array]:
    """The reference weights, with tables for 265 tokens."""
    found = dict(mx.load(str(GOLDEN / arch / "weights.safetensors")))
    for name, array in found.items():
        if name.startswith(TABLES):
            key = mx.random.key(sum(name.encode()))
            more = mx.random.normal((ROWS[arch] - KNOWN, array.shape[1]), key=key)
            found[name] = mx.concatenate([array[:KNOWN], more])
    return found


def config(arch: str) -> dict[str, Any]:
    """nanochat's own settings of them."""
    return golden(f"{arch}/case.json")["config"] | {"vocab_size": BYTES.vocab_size}


def write_nanochat(
    base: Path,
    arch: str,
    step: int = 7,
    stage: str = "base_checkpoints",
    tensors: dict[str, mx.array] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint where nanochat has it, with its tokenizer; returns its folder."""
    folder, beside = base / stage / "d4", base / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    beside.mkdir(exist_ok=True)
    torch_file.write_torch(folder / f"model_{step:06d}.pt", tensors or weights(arch))
    meta = {"step": step, "val_bpb": 1.25, "model_config": fields or config(arch)}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta), "utf-8")
    nanochat_files.write_tokenizer(beside / "tokenizer.pkl", BYTES)
    return folder


def saved(base: Path, arch: str, conversational: bool = False) -> SavedModel:
    """The reference model."""
    foreign = open_model(write_nanochat(base, arch))
    return SavedModel(read_network(foreign), BYTES, conversational)


def assert_reference_logits(model: GPT, arch: str) -> None:
    """The model computes what nanochat did."""
    reference = mx.load(str(GOLDEN / arch / "io.safetensors"))
    logits = model(reference["ids"])[..., :KNOWN]
    assert mx.abs(logits - reference["logits"]).max().item() < 1e-4
