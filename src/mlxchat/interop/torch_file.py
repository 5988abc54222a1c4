"""Files of ``torch.save``, read and written without torch.

Such a file is a zip: ``data.pkl``, a pickle of the value in which a tensor is a call of
``torch._utils._rebuild_tensor_v2`` with its shape, its strides and a persistent id of its storage;
``data/0``, ``data/1`` and so on, the bytes of the storages; ``byteorder`` and ``version``. Tensors
are read one at a time, when they are asked for. Nothing in a file is run (see `pickles`).

Source of the format: torch/serialization.py and torch/_utils.py of PyTorch 2.13.
"""

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mlxchat.checkpoint.files import damaged, refused, unreadable
from mlxchat.errors import CheckpointError
from mlxchat.interop import pickles, stored_zip
from mlxchat.interop.pickles import Function, Instance
from mlxchat.interop.stored_zip import Entry
from mlxchat.runtime import mx

ROOT = "archive"  # the folder of all entries, in what is written
VERSION = b"3\n"  # of the format, in what is written
VERSIONS = range(1, 11)  # that can be read
MOST_AXES = 8
MOST_ELEMENTS = 2**31 - 1  # of an array of MLX

# Names of storages and of dtypes in torch; how numpy sees the bytes, for bfloat16 as integers.
_DTYPES = (
    ("FloatStorage", "float32", mx.float32, "<f4"),
    ("BFloat16Storage", "bfloat16", mx.bfloat16, "<u2"),
    ("HalfStorage", "float16", mx.float16, "<f2"),
    ("DoubleStorage", "float64", mx.float64, "<f8"),
    ("LongStorage", "int64", mx.int64, "<i8"),
    ("IntStorage", "int32", mx.int32, "<i4"),
    ("ShortStorage", "int16", mx.int16, "<i2"),
    ("CharStorage", "int8", mx.int8, "|i1"),
    ("ByteStorage", "uint8", mx.uint8, "|u1"),
    ("BoolStorage", "bool", mx.bool_, "|u1"),
)
_NUMPY = {dtype: form for _, _, dtype, form in _DTYPES}
_STORAGE = {dtype: storage for storage, _, dtype, _ in _DTYPES}


@dataclass(frozen=True, eq=False)
class Storage:
    """The elements of one tensor or several, in a file."""

    entry: Entry
    dtype: mx.Dtype
    count: int


@dataclass(frozen=True, eq=False)
class TorchTensor:
    """A tensor in a file. Offset and strides count elements of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> mx.Dtype:
        """The type of its elements."""
        return self.storage.dtype

    def read(self) -> mx.array:
        """Read the elements, exactly as they are in the file.

        Takes twice the tensor's size for a moment, and a few MB.

        Raises:
            CheckpointError: the file has changed or is damaged.
        """
        if 0 in self.shape:
            return mx.zeros(self.shape, self.dtype)
        form = np.dtype(_NUMPY[self.dtype])
        spanned = 1 + sum(
            (n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)
        )
        content = self.storage.entry.read(self.offset * form.itemsize, spanned * form.itemsize)
        steps = [stride * form.itemsize for stride in self.strides]
        values = np.ndarray(self.shape, form, content, strides=steps)
        if self.dtype == mx.bfloat16:
            return mx.array(values).view(mx.bfloat16)
        return mx.array(values, self.dtype)


def read_torch(path: Path) -> Any:
    """Read the value that ``torch.save`` wrote.

    Returns:
        Dictionaries, lists, tuples, numbers, text and None; a `TorchTensor` for a tensor or
        parameter, an mx.Dtype for a dtype, text for a device.

    Raises:
        CheckpointError: the file cannot be read, is damaged, of another format, or asks for
            something other than data (which is named).
    """
    _check_kind(path)
    entries = stored_zip.zip_entries(path)
    root = next(iter(entries), "").split("/")[0]
    pickled = entries.get(f"{root}/data.pkl")
    if pickled is None or any(not name.startswith(f"{root}/") for name in entries):
        raise damaged(path, "a zip file, but not written by torch.save")
    _check_format(path, root, entries)
    if pickled.size > pickles.MOST_BYTES:
        raise damaged(path, f"{pickled.name} has {pickled.size:,} bytes")

    def storage(identity: Any) -> Storage:
        match identity:
            case ("storage", mx.Dtype() as dtype, str() as key, str(), int() as count):
                return _storage(entries.get(f"{root}/data/{key}"), dtype, count)
        raise ValueError("a persistent id that is not of a storage")

    return pickles.read_pickle(bytes(pickled.read()), path, _ADMITTED, storage)


def write_torch(path: Path, value: Any) -> None:
    """Write a file that ``torch.load(path, weights_only=True)`` reads.

    Arrays are evaluated and written one after another. The same value makes the same bytes.

    Args:
        path: the file; it is overwritten.
        value: arrays (which become tensors on the CPU), None, booleans, integers of 64 bits, floats
            and text, in dictionaries, lists and tuples.

    Raises:
        OSError: the file cannot be written.
        TypeError, OverflowError: the value contains anything else.
    """
    arrays: list[mx.array] = []
    program = b"".join([pickle.PROTO, b"\x02", *_pickled(value, arrays), pickle.STOP])

    def contents() -> Iterator[tuple[str, memoryview]]:
        yield f"{ROOT}/data.pkl", memoryview(program)
        yield f"{ROOT}/byteorder", memoryview(b"little")
        for key, array in enumerate(arrays):
            yield f"{ROOT}/data/{key}", _content(array)
        yield f"{ROOT}/version", memoryview(VERSION)

    stored_zip.write_zip(path, contents())


def _check_kind(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise unreadable(path, error) from error
    if head[:1] == pickle.PROTO:
        raise CheckpointError(
            f"{path} has the format of torch before version 1.6.",
            "Save it again with a newer torch: "
            "torch.save(torch.load(FILE, weights_only=True), NEW_FILE)",
        )
    if head != b"PK":
        raise damaged(path, "not written by torch.save")


def _check_format(path: Path, root: str, entries: dict[str, Entry]) -> None:
    """Check byte order and version. Without a byte order, torch assumes little-endian."""
    order, version = entries.get(f"{root}/byteorder"), entries.get(f"{root}/version")
    if order is not None and order.read(0, min(order.size, 9)) != b"little":
        raise refused(path, "its byte order is not little-endian")
    if version is None or version.size > 9:
        raise damaged(path, "it does not give its version")
    number = bytes(version.read()).strip()
    if not number.isdigit() or int(number) not in VERSIONS:
        raise refused(path, f"it has version {number!a} of torch's format")


def _storage(entry: Entry | None, dtype: mx.Dtype, count: int) -> Storage:
    if entry is None:
        raise ValueError("a storage is missing")
    if entry.size != count * dtype.size:
        raise ValueError(f"{entry.name} has {entry.size:,} bytes, not {count * dtype.size:,}")
    return Storage(entry, dtype, count)


def _tensor(arguments: tuple[Any, ...]) -> TorchTensor:
    match arguments:
        case (Storage() as storage, int() as offset, tuple() as shape, tuple() as strides, *_):
            pass
        case _:
            raise ValueError("a tensor without storage, offset, shape and strides")
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    if any(type(n) is not int or not 0 <= n <= MOST_ELEMENTS for n in (offset, *shape, *strides)):
        raise ValueError("a tensor with an offset, a size or a stride out of range")
    elements = prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if elements > MOST_ELEMENTS:
        raise ValueError(f"a tensor of {elements:,} elements")
    if elements and (last >= storage.count or elements > storage.count):
        raise ValueError(f"a tensor reaches beyond {storage.entry.name}")
    return TorchTensor(storage, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> TorchTensor:
    match arguments:
        case (TorchTensor() as tensor, *_):
            return tensor
    raise ValueError("a parameter that is not a tensor")


class _OrderedDict(dict[Any, Any], Instance):
    """An OrderedDict whose state (the versions of a module's parts) is ignored."""


def _ordered(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict made of something")
    return _OrderedDict()


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (tuple() as shape,):
            return shape
    raise ValueError("a size that is not a tuple")


def _device(arguments: tuple[Any, ...]) -> str:
    match arguments:
        case (str() as kind,):
            return kind
        case (str() as kind, int() as index):
            return f"{kind}:{index}"
    raise ValueError("a device without a name")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Function(_ordered),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("torch", "Size"): Function(_size),
    ("torch", "device"): Function(_device),
    **{("torch", storage): dtype for storage, _, dtype, _ in _DTYPES},
    **{("torch", name): dtype for _, name, dtype, _ in _DTYPES},
}


def _pickled(value: Any, arrays: list[mx.array]) -> Iterator[bytes]:
    """Yield the instructions that make a value; its arrays are appended to the list."""
    match value:
        case None:
            yield pickle.NONE
        case bool():
            yield pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            yield pickle.LONG1 + b"\x08" + value.to_bytes(8, "little", signed=True)
        case float():
            yield pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            content = value.encode()
            yield pickle.BINUNICODE + struct.pack("<I", len(content)) + content
        case dict():
            yield pickle.EMPTY_DICT + pickle.MARK
            for item in value.items():
                for part in item:
                    yield from _pickled(part, arrays)
            yield pickle.SETITEMS
        case list() | tuple():
            yield pickle.EMPTY_LIST * isinstance(value, list) + pickle.MARK
            for item in value:
                yield from _pickled(item, arrays)
            yield pickle.APPENDS if isinstance(value, list) else pickle.TUPLE
        case mx.array():
            yield from _pickled_tensor(value, arrays)
        case _:
            raise TypeError(f"a torch file cannot hold a value of type {type(value).__name__}")


def _pickled_tensor(array: mx.array, arrays: list[mx.array]) -> Iterator[bytes]:
    """Yield a call of _rebuild_tensor_v2 without gradient and hooks."""
    key, kind = len(arrays), _STORAGE.get(array.dtype)
    if kind is None:
        raise TypeError(f"a torch file cannot hold an array of {array.dtype}")
    arrays.append(array)
    strides = tuple(prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    yield b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK * 2
    yield from _pickled("storage", arrays)
    yield f"ctorch\n{kind}\n".encode()
    for identity in (str(key), "cpu", array.size):
        yield from _pickled(identity, arrays)
    yield pickle.TUPLE + pickle.BINPERSID
    for argument in (0, array.shape, strides, False):
        yield from _pickled(argument, arrays)
    yield b"ccollections\nOrderedDict\n)R" + pickle.TUPLE + pickle.REDUCE


def _content(array: mx.array) -> memoryview:
    numbers = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data
