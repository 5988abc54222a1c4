"""nanochat's checkpoints of all its eras, and those of the original mlxchat, which are alike.

The original mlxchat (zhubert/mlxchat, October 2025) keeps arrays of numpy in place of torch's, and
its names lack ``transformer.``.

numpy's ``.npz`` files: a zip of arrays, each read when it is asked for.

Source of the format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from mlxchat.checkpoint.files import damaged, read_json
from mlxchat.errors import CheckpointError, NotFound
from mlxchat.interop import nanochat_files, stored_zip, torch_file
from mlxchat.interop.importers import model
from mlxchat.interop.importers.model import Foreign, Tensor, configure, require_vocabulary
from mlxchat.interop.stored_zip import Entry
from mlxchat.runtime import mx

ENDING = ".npy"
MOST_HEADER = 2**12  # bytes

_DTYPES = {"<f4": mx.float32, "<f2": mx.float16}


@dataclass(frozen=True, eq=False)
class Array:
    """An array in a file."""

    entry: Entry
    start: int  # of its elements, in the entry
    shape: tuple[int, ...]
    dtype: mx.Dtype

    def read(self) -> mx.array:
        """Its elements.

        Raises:
            MlxchatError: the file has changed or is damaged.
        """
        content = self.entry.read(self.start)
        form = {dtype: name for name, dtype in _DTYPES.items()}[self.dtype]
        return mx.array(np.frombuffer(content, form).reshape(self.shape))


def read(path: Path) -> dict[str, Array]:
    """The arrays of a file, by name; nothing but their headers is read.

    Raises:
        MlxchatError: it cannot be read, is damaged, compressed, or holds something other than
            float32 and float16 in the order of C.
    """
    return {
        name.removesuffix(ENDING): _array(path, entry)
        for name, entry in stored_zip.entries(path).items()
    }


def _array(path: Path, entry: Entry) -> Array:
    header = io.BytesIO(entry.read(0, min(entry.size, MOST_HEADER)))
    try:
        version = npy.read_magic(header)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, in_columns, dtype = npy.read_array_header_1_0(header, MOST_HEADER)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise damaged(path, f"{entry.name} is no array: {error}") from error
    if dtype.str not in _DTYPES or in_columns:
        raise damaged(path, f"{entry.name} is of {dtype.str}, by columns or of no such kind")
    if entry.size - header.tell() != prod(shape) * dtype.itemsize:
        raise damaged(path, f"{entry.name} is not of shape {shape}")
    return Array(entry, header.tell(), shape, _DTYPES[dtype.str])


COMPILED = "_orig_mod."  # what torch.compile puts before all names
ROTARY = ("cos", "sin")  # tables that can be computed

_FILE = re.compile(r"model_(\d{1,12})\.(pt|npz)")


def open_model(
    path: Path,
    step: int | None,
    tokenizer: Path | None,
    softcap: float | None,
    conversational: bool | None,
) -> Foreign:
    """A checkpoint; see `importers.open_model`."""
    file, number = _file(path, step)
    folder = file.parent.resolve()  # the hub's cache has links to files of other names
    meta_path = file.with_name(nanochat_files.meta_file(number))
    if not meta_path.exists():
        raise CheckpointError(
            f"{meta_path} is missing, which says how many heads the model in {file.name} has.",
            "Copy it from where the model was trained.",
        )
    meta = read_json(meta_path)
    tensors = _torch(file) if file.suffix == ".pt" else _numpy(file)
    config = configure(file, meta_path, _fields(meta_path, meta), tensors, softcap)
    found = model.find(tokenizer, [folder, folder.parent.parent / nanochat_files.TOKENIZER_FOLDER])
    require_vocabulary(file, found, config.vocab_size)
    stage, notes = folder.parent.name, []
    if conversational is None:
        conversational = stage in nanochat_files.CONVERSATIONAL
        if not conversational and stage != nanochat_files.BASE:
            notes.append(
                f"{folder} does not say whether the model was trained on conversations: it is "
                "taken for a base model; `conversational` says otherwise."
            )
    if softcap is None and len(config.traits.softcaps) > 1:
        caps = " or ".join(f"{cap:g}" for cap in config.traits.softcaps)
        notes.append(
            f"The file cannot say whether its logits are capped at {caps}: {config.softcap:g} is "
            "taken; `softcap` takes another. The right one gives fewer bits per byte."
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
    """The file with the tensors, and its step."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    found = {int(match[1]): file for file in files if (match := _FILE.fullmatch(file.name))}
    if not found:
        raise NotFound(
            f"There is no model in {path}.",
            "Give a directory with model_NNNNNN.pt and meta_NNNNNN.json, as nanochat's "
            "base_checkpoints/d20, or one with config.json and model.safetensors.",
        )
    number = max(found) if step is None else step
    if number not in found:
        raise NotFound(
            f"{path} has no step {number}.", f"It has: {', '.join(map(str, sorted(found)))}."
        )
    return found[number], number


def _fields(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    fields = meta.get("model_config")
    if not isinstance(fields, dict):
        raise damaged(path, "no model_config")
    if missing := [name for name in nanochat_files.FIELDS if name not in fields]:
        raise damaged(path, f"model_config lacks {', '.join(missing)}")
    if unknown := [
        name for name in fields if name not in (*nanochat_files.FIELDS, nanochat_files.WINDOWS)
    ]:
        listed = ", ".join(map(ascii, unknown))
        raise CheckpointError(
            f"{path} has settings of no nanochat that is known: {listed:.200}.",
            "Give a model of nanochat's main branch.",
        )
    return fields


def _torch(path: Path) -> dict[str, Tensor]:
    value = torch_file.read(path)
    if not isinstance(value, dict):
        raise damaged(path, "not a table of tensors")
    tensors: dict[str, Tensor] = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch_file.Tensor):
            raise damaged(path, f"{name!a:.99} is no tensor")
        plain = name.removeprefix(COMPILED)
        if plain in tensors:
            raise damaged(path, f"{plain} is there twice")
        tensors[plain] = tensor
    return tensors


def _numpy(path: Path) -> dict[str, Tensor]:
    arrays = read(path)
    return {
        name if name.startswith("lm_head.") else f"transformer.{name}": array
        for name, array in arrays.items()
        if name not in ROTARY
    }
