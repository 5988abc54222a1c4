"""Weight files: safetensors, compared with their checksums, and read as arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxchat.checkpoint.files import (
    damaged,
    missing_file,
    model_files,
    unreadable,
    unusable,
    verify_file,
)
from mlxchat.device_failures import explained
from mlxchat.disk import open_regular, require_utf8
from mlxchat.runtime import mx


def read_model_arrays(folder: Path) -> dict[str, mx.array]:
    """Read the arrays in all weight files of a model.

    Raises:
        CheckpointError: a file is missing or damaged, or two hold an array of the same name.
    """
    arrays: dict[str, mx.array] = {}
    for file in model_files(folder):
        for name, array in read_arrays(file).items():
            if name in arrays:
                raise damaged(file, f"{name} is in another file too")
            arrays[name] = array
    return arrays


def read_arrays(path: Path) -> dict[str, mx.array]:
    """Read the arrays of a safetensors file."""
    arrays = open_arrays(path)
    try:
        with explained():
            mx.eval(arrays)
    except RuntimeError as error:
        raise damaged(path, error) from error
    return arrays


def open_arrays(path: Path) -> dict[str, mx.array]:
    """Open a safetensors file; MLX reads its arrays when they are evaluated."""
    if not path.exists():
        raise missing_file(path)
    verify_file(path)
    return open_unchecked(path)


def open_unchecked(path: Path) -> dict[str, mx.array]:
    """Open a safetensors file as `open_arrays` does, without comparing its checksum."""
    require_utf8(path)
    try:
        open_regular(path).close()  # MLX would wait for a pipe
        with explained():
            arrays: Any = mx.load(str(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except (RuntimeError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(arrays, dict):
        raise damaged(path, "not a table of arrays")
    return arrays


def check_arrays(
    path: Path, found: Mapping[str, mx.array], expected: Mapping[str, mx.array]
) -> None:
    """Raise `CheckpointError` unless names and shapes are exactly those expected.

    ``path`` is the file, or the model's directory, for the message.
    """
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
