"""Rows of parquet files as Python objects, whatever values are in them."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from mlxchat.data.chats.values import UNREAD

_BYTES = ("binary", "fixed_size_binary")  # begin the names of Arrow's types of bytes


def python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, object]]:
    """Yield the rows of a batch as `to_pylist` returns them, values that it refuses included.

    Bytes are text if they are UTF-8, as some writers store text. Maps are objects. Times in
    nanoseconds, which Python does not have, are ISO text. What Python cannot hold at all, such as
    the year 20,000, is `UNREAD`.

    Raises:
        UnicodeDecodeError: a text is not UTF-8.
    """
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        names = batch.schema.names
        rows = [
            {name: _as_python(column[row]) for name, column in zip(names, batch, strict=True)}
            for row in range(batch.num_rows)
        ]
    plain = not any(_has_bytes_or_map(kind) for kind in batch.schema.types)
    yield from rows if plain else map(_as_json_has_it, rows)


def _as_python(value: pa.Scalar) -> object:
    try:
        found: object = value.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return _in_parts(value)
    return found


def _in_parts(value: pa.Scalar) -> object:
    """Return a value that `as_py` refuses: what is within it, one by one, or else its text."""
    if isinstance(value, pa.StructScalar):
        return {field.name: _as_python(value[place]) for place, field in enumerate(value.type)}
    if isinstance(value, pa.MapScalar):
        return [(_as_python(entry["key"]), _as_python(entry["value"])) for entry in value.values]
    if isinstance(value, pa.ListScalar):
        return [_as_python(entry) for entry in value.values]
    if str(value.type).startswith(("timestamp[ns", "time64[ns")):
        return value.cast(pa.string()).as_py().replace(" ", "T")
    return UNREAD


def _has_bytes_or_map(kind: pa.DataType) -> bool:
    """Return whether any value within a value of a type is bytes or a map."""
    if pa.types.is_struct(kind):
        return any(_has_bytes_or_map(field.type) for field in kind)
    if pa.types.is_map(kind) or str(kind).removeprefix("large_").startswith(_BYTES):
        return True
    within = getattr(kind, "value_type", None)  # of a list or a dictionary
    return within is not None and _has_bytes_or_map(within)


def _as_json_has_it(value: Any) -> Any:
    """Return a value with text for bytes that are UTF-8, and objects for maps, which are pairs."""
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, list) and value and type(value[0]) is tuple:
        pairs = [(_as_json_has_it(key), _as_json_has_it(within)) for key, within in value]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else pairs
    if isinstance(value, dict):
        return {key: _as_json_has_it(within) for key, within in value.items()}
    return [*map(_as_json_has_it, value)] if isinstance(value, list) else value
