"""The arrays of safetensors files, and which files a model's directory has them in."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxchat.ckpt import checksums
from mlxchat.ckpt.foreign import damaged, read_json, unusable
from mlxchat.runtime import mx

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def model_files(folder: Path) -> list[Path]:
    """The files of a model: all that its index names, or the only one. They may be missing.

    Raises:
        MlxchatError: the index is damaged, or names files of other folders.
    """
    index = folder / INDEX
    if not index.exists():
        return [folder / MODEL]
    checksums.check(index)
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(map(_is_name, listed.values())):
        raise damaged(index, "no weight_map of files in the same folder")
    return [folder / name for name in sorted(set(listed.values()))]


def read_model_arrays(folder: Path) -> dict[str, mx.array]:
    """The arrays of all files of a model, evaluated.

    Raises:
        MlxchatError: a file is missing or damaged, or two have an array of the same name.
    """
    arrays: dict[str, mx.array] = {}
    for file in model_files(folder):
        for name, array in read_arrays(file).items():
            if name in arrays:
                raise damaged(file, f"{name} is in another file too")
            arrays[name] = array
    return arrays


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, evaluated."""
    arrays = open_arrays(path)
    try:
        mx.eval(arrays)
    except RuntimeError as error:
        raise damaged(path, error) from error
    return arrays


def open_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, which MLX will read when they are evaluated."""
    if not path.exists():
        raise checksums.missing(path)
    checksums.check(path)
    return load(path)


def load(path: Path) -> dict[str, mx.array]:
    """As `open_arrays`, of a file that has been checked."""
    try:
        arrays: Any = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(arrays, dict):
        raise damaged(path, "not a table of arrays")
    return arrays


def check_arrays(
    path: Path, found: Mapping[str, mx.array], expected: Mapping[str, mx.array]
) -> None:
    """Names and shapes must be exactly those expected; ``path`` is of the file or its folder."""
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name} is unexpected" for name in sorted(found.keys() - expected.keys())]
    faults += [
        f"{name} has shape {found[name].shape}, not {expected[name].shape}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        folder = path if path.is_dir() else path.parent
        raise unusable(folder, f"{path}: {'; '.join(faults[:3])}{more}.")


def _is_name(file: object) -> bool:
    return isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file) is not None
