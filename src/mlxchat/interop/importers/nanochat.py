"""nanochat's checkpoints of all eras, and those of the original mlxchat, which are similar.

The original mlxchat (zhubert/mlxchat, October 2025) stores numpy arrays in place of torch tensors,
and its names lack ``transformer.``.
"""

import re
from pathlib import Path
from typing import Any

from mlxchat.checkpoint.files import damaged, read_json
from mlxchat.errors import CheckpointError, NotFound
from mlxchat.interop import nanochat_files, torch_file
from mlxchat.interop.importers import model
from mlxchat.interop.importers.model import (
    Foreign,
    Tensor,
    configure,
    plain_tensors,
    require_vocabulary,
)
from mlxchat.interop.npz_file import read_npz

ROTARY = ("cos", "sin")  # tables that are computed instead

_FILE = re.compile(r"model_(\d{1,12})\.(pt|npz)")


def open_nanochat(
    path: Path,
    step: int | None,
    tokenizer: Path | None,
    softcap: float | None,
    conversational: bool | None,
) -> Foreign:
    """Open a checkpoint, also that of the only run in a NANOCHAT_BASE_DIR."""
    file, number = _file(path, step)
    folder = file.parent.resolve()  # the hub's cache has links to files of other names
    meta_path = file.with_name(nanochat_files.meta_file(number))
    if not meta_path.exists():
        raise CheckpointError(
            f"{meta_path} is missing, which gives the number of heads of the model in {file.name}.",
            "Copy it from the machine where the model was trained.",
        )
    meta = read_json(meta_path)
    tensors = _torch(file) if file.suffix == ".pt" else _numpy(file)
    config = configure(file, meta_path, _fields(meta_path, meta), tensors, softcap)
    found = model.find_tokenizer(
        tokenizer, [folder, folder.parent.parent / nanochat_files.TOKENIZER_FOLDER]
    )
    require_vocabulary(file, found, config.vocab_size)
    stage, notes = folder.parent.name, []
    if conversational is None:
        conversational = stage in nanochat_files.CONVERSATIONAL
        if not conversational and stage != nanochat_files.BASE:
            notes.append(
                f"It is unclear from {folder} whether the model was trained on conversations. It "
                "is imported as a base model; `conversational` imports it as a chat model."
            )
    if softcap is None and len(config.traits.softcaps) > 1:
        caps = " or ".join(f"{cap:g}" for cap in config.traits.softcaps)
        notes.append(
            f"The file does not say whether the logits are capped at {caps}. {config.softcap:g} "
            "is assumed; `softcap` sets another value. The right value gives fewer bits per byte."
        )
    return Foreign(
        path=file,
        program="nanochat" if file.suffix == ".pt" else "mlxchat of 2025",
        step=number,
        name=folder.name,
        config=config,
        tensors=tensors,
        tokenizer=found,
        conversational=conversational,
        bits_per_byte=bits if isinstance(bits := meta.get("val_bpb"), float) else None,
        notes=tuple(notes),
    )


def _file(path: Path, step: int | None) -> tuple[Path, int]:
    """Return the file with the tensors, and its step."""
    found = _steps(path) or _steps(_only_run(path))
    if not found:
        raise NotFound(
            f"There is no model in {path}.",
            "Name a directory with model_NNNNNN.pt and meta_NNNNNN.json, such as nanochat's "
            "base_checkpoints/d20, or one with config.json and model.safetensors.",
        )
    number = max(found) if step is None else step
    if number not in found:
        raise NotFound(
            f"{path} has no step {number}.", f"It has: {', '.join(map(str, sorted(found)))}."
        )
    return found[number], number


def _steps(path: Path) -> dict[int, Path]:
    """Return the files of tensors in a folder, or the one that is given, by their steps."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {int(match[1]): file for file in files if (match := _FILE.fullmatch(file.name))}


def _only_run(path: Path) -> Path:
    """Return the only run's folder in a NANOCHAT_BASE_DIR or in a folder of checkpoints in that.

    It is the path itself if there is none.

    Raises:
        NotFound: there are several.
    """
    names = (nanochat_files.BASE, *nanochat_files.CONVERSATIONAL)
    stages = [path] if path.resolve().name in names else [path / name for name in names]
    folders = sorted(folder for stage in stages if stage.is_dir() for folder in stage.iterdir())
    runs = [folder for folder in folders if folder.is_dir() and _steps(folder)]
    if len(runs) > 1:
        listed = ", ".join(str(run.relative_to(path)) for run in runs[:9])
        raise NotFound(f"There are several models in {path}: {listed}.", "Name one of them.")
    return runs[0] if runs else path


def _fields(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    fields = meta.get("model_config")
    if not isinstance(fields, dict):
        raise damaged(path, "no model_config")
    if missing := [name for name in nanochat_files.FIELDS if name not in fields]:
        raise damaged(path, f"model_config lacks {', '.join(missing)}")
    if unknown := [
        name
        for name in fields
        if name not in (*nanochat_files.FIELDS, nanochat_files.WINDOWS_FIELD)
    ]:
        listed = ", ".join(map(ascii, unknown))
        raise CheckpointError(
            f"{path} has settings that no known version of nanochat uses: {listed:.200}.",
            "Use a model from nanochat's main branch.",
        )
    return fields


def _torch(path: Path) -> dict[str, Tensor]:
    value = torch_file.read_torch(path)
    if not isinstance(value, dict):
        raise damaged(path, "not a table of tensors")
    tensors: dict[str, Tensor] = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch_file.TorchTensor):
            raise damaged(path, f"{name!a:.99} is not a tensor")
        tensors[name] = tensor
    return plain_tensors(path, tensors)


def _numpy(path: Path) -> dict[str, Tensor]:
    arrays = read_npz(path)
    return {
        name if name.startswith("lm_head.") else f"transformer.{name}": array
        for name, array in arrays.items()
        if name not in ROTARY
    }
