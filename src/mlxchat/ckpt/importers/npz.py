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
from mlxchat.ckpt import stored_zip
from mlxchat.ckpt.stored_zip import Entry
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
