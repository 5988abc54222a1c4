"""numpy's ``.npz`` files: a zip of arrays, each read when it is asked for.

Source of the format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mlxchat.checkpoint.files import damaged
from mlxchat.interop import stored_zip
from mlxchat.interop.stored_zip import Entry
from mlxchat.runtime import mx

SUFFIX = ".npy"
LARGEST_HEADER = 2**12  # bytes

_DTYPES = {"<f4": mx.float32, "<f2": mx.float16}


@dataclass(frozen=True, eq=False)
class NpzArray:
    """An array in a file.

    Attributes:
        entry: the entry of the zip file that holds it.
        start: the offset of its elements in the entry, in bytes.
        shape, dtype: those of the array that `read` returns.
    """

    entry: Entry
    start: int
    shape: tuple[int, ...]
    dtype: mx.Dtype

    def read(self) -> mx.array:
        """Read the elements.

        Raises:
            CheckpointError: the file has changed or is damaged.
        """
        content = self.entry.read(self.start)
        form = {dtype: name for name, dtype in _DTYPES.items()}[self.dtype]
        return mx.array(np.frombuffer(content, form).reshape(self.shape))


def read_npz(path: Path) -> dict[str, NpzArray]:
    """Return the arrays of a file by name; only their headers are read.

    Raises:
        CheckpointError: the file cannot be read, is damaged or compressed, or holds something other
            than float32 and float16 in C order.
    """
    return {
        name.removesuffix(SUFFIX): _array(path, entry)
        for name, entry in stored_zip.zip_entries(path).items()
    }


def _array(path: Path, entry: Entry) -> NpzArray:
    header = io.BytesIO(entry.read(0, min(entry.size, LARGEST_HEADER)))
    try:
        version = npy.read_magic(header)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, in_columns, dtype = npy.read_array_header_1_0(header, LARGEST_HEADER)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise damaged(path, f"{entry.name} is not an array: {error}") from error
    if dtype.str not in _DTYPES:
        raise damaged(path, f"{entry.name} is of {dtype.str}, which is not supported")
    if in_columns:
        raise damaged(path, f"{entry.name} is stored in column order")
    if entry.size - header.tell() != prod(shape) * dtype.itemsize:
        raise damaged(path, f"{entry.name} is not of shape {shape}")
    return NpzArray(entry, header.tell(), shape, _DTYPES[dtype.str])
