"""Converts rows of parquet files to Python objects, whatever values are in them."""

from typing import Any

import pyarrow as pa

UNREAD: object = ...  # stands for a value that was not read, or that Python cannot hold


def python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch as `to_pylist` does, but also where that refuses a value.

    Maps become objects. Times in nanoseconds, which Python does not have, become ISO text. What
    Python cannot hold at all, such as the year 20,000, becomes `UNREAD`.

    Raises:
        UnicodeDecodeError: a text is not UTF-8.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        names = batch.schema.names
        rows = [
            {name: _as_python(column[row]) for name, column in zip(names, batch, strict=True)}
            for row in range(batch.num_rows)
        ]
    if any(map(_has_map, batch.schema.types)):
        rows = [_with_objects(row) for row in rows]
    return rows


def _as_python(value: pa.Scalar) -> object:
    try:
        found: object = value.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return _in_parts(value)
    return found


def _in_parts(value: pa.Scalar) -> object:
    """Return a value that `as_py` refuses, converting the values within it one by one."""
    if isinstance(value, pa.StructScalar):
        return {field.name: _as_python(value[place]) for place, field in enumerate(value.type)}
    if isinstance(value, pa.MapScalar):
        return [(_as_python(entry["key"]), _as_python(entry["value"])) for entry in value.values]
    if isinstance(value, pa.ListScalar):
        return [_as_python(entry) for entry in value.values]
    if str(value.type).startswith(("timestamp[ns", "time64[ns")):
        return value.cast(pa.string()).as_py().replace(" ", "T")
    return UNREAD


def _has_map(kind: pa.DataType) -> bool:
    """Return whether a type is a map or has one within it."""
    if pa.types.is_struct(kind):
        return any(_has_map(field.type) for field in kind)
    within = getattr(kind, "value_type", None)  # of a list
    return pa.types.is_map(kind) or (within is not None and _has_map(within))


def _with_objects(value: Any) -> Any:
    """Return a value with objects in place of maps, which are lists of pairs."""
    if isinstance(value, dict):
        return {key: _with_objects(within) for key, within in value.items()}
    if not isinstance(value, list):
        return value
    if value and type(value[0]) is tuple:
        pairs = [(key, _with_objects(within)) for key, within in value]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else pairs
    return [*map(_with_objects, value)]
