"""Adapters for PEFT, Hugging Face's library, which puts them on models of transformers.

The model itself is not among the files: it is exported for transformers, once for all its adapters.

Source: utils/save_and_load.py of PEFT 0.21; `mlxchat.interop.adapters` has the names.
"""

import json
from pathlib import Path

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.checkpoint.weights import read_arrays
from mlxchat.errors import command
from mlxchat.interop.adapters import (
    PEFT_CONFIG,
    PEFT_FILE,
    Adapter,
    require_same_effect,
    to_peft,
)
from mlxchat.interop.exporters import transformers
from mlxchat.interop.exporters.card import FOLDER, Usage
from mlxchat.interop.exporters.job import ExportJob
from mlxchat.model.config import GPTConfig
from mlxchat.model.lora import adapter_arrays
from mlxchat.model.quantized import formats_of
from mlxchat.runtime import mx


def require_known(config: GPTConfig, quantize: str | None) -> None:
    """Check that transformers has the network that the adapter is on.

    Raises:
        CheckpointError: it has not.
    """
    transformers.require_known(config, quantize)


def write(folder: Path, job: ExportJob) -> None:
    """Write the adapter's files, and compare what PEFT makes of them with what is computed here."""
    saved = job.saved
    lora = saved.model.adapter
    assert lora is not None
    adapter = Adapter(lora, adapter_arrays(saved.model))
    tensors, settings = to_peft(adapter, saved.model.config, _base_folder(saved))
    (folder / PEFT_CONFIG).write_text(json.dumps(settings, indent=2), "utf-8")
    mx.save_safetensors(str(folder / PEFT_FILE), tensors, {"format": "pt"})
    require_same_effect(adapter, settings, read_arrays(folder / PEFT_FILE))
    saved.tokenizer.save(folder, saved.conversational)
    job.weights.report(size := sum(tensor.nbytes for tensor in tensors.values()), size)


def usage(job: ExportJob) -> Usage:
    """Return the lines of Python that run the model with the adapter."""
    saved = job.saved
    base = _base_folder(saved)
    lines = (
        "# pip install torch transformers peft",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
        f"model = PeftModel.from_pretrained(base, {FOLDER})",
        f"tokenizer = AutoTokenizer.from_pretrained({FOLDER})",
    )
    assert saved.base is not None
    export = command("export", to="transformers", model_tag=saved.base.run, step=saved.base.step)
    remark = f"To export its base model: `{export}`"
    if formats_of(saved.model):
        remark = (
            f"Its base model, {saved.base.run}, is quantized, which transformers cannot read. "
            f"Export the model it was made from to the folder {base}. With those more precise "
            "weights, the adapter gives nearly the same results."
        )
    return Usage("python", lines, remark)


def _base_folder(saved: SavedModel) -> str:
    """Return the folder in which the base is by default when it has been exported."""
    assert saved.base is not None
    return f"{saved.base.run}-transformers"
