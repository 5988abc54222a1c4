"""Rows of parquet files as Python objects, whatever values are in them."""

from collections.abc import Iterator

import pyarrow as pa

from mlxchat.data.chats.values import UNREAD


def python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, object]]:
    """Yield the rows of a batch as `to_pylist` returns them, values that it refuses included.

    Times in nanoseconds, which Python does not have, are ISO text. What Python cannot hold at all,
    such as the year 20,000, is `UNREAD`.

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
    yield from rows


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
        return {field.name: _as_python(value[field.name]) for field in value.type}
    if isinstance(value, pa.ListScalar):
        return [_as_python(entry) for entry in value.values]
    if pa.types.is_temporal(value.type) and str(value.type).endswith("[ns]"):
        return value.cast(pa.string()).as_py().replace(" ", "T")
    return UNREAD
