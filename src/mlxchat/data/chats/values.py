"""Converts the values in a decoded row of conversations: texts, JSON within strings, truth values.

File formats have different types: .csv only has strings, .parquet has times, decimals and bytes,
and programs write JSON into strings. This module converts equal values to the same object, or
refuses the row with a reason.
"""

import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python

from mlxchat.json_text import is_unicode, parse_json

NAME_CHARACTERS = 30  # of a key, a role or a type in a reason

JsonRow = Mapping[str, Any]


class UnusableError(Exception):
    """A row cannot be trained on. ``reason`` is a short phrase, the same for similar rows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Remarks:
    """Collects remarks about a row that is used.

    Attributes:
        changes: phrases that say how the conversation differs from the row.
        unused: the keys of the row, its messages and their parts that were not read.
    """

    changes: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)

    def pass_over(self, given: JsonRow, read: Container[str]) -> None:
        """Note the keys of an object that hold something and are not among those read."""
        left = (key for key, value in given.items() if key not in read and not is_empty(value))
        self.unused.update(map(shortened, left))


def is_empty(value: object) -> bool:
    """Return whether a value is null, or a text, list or object without content."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def present(given: JsonRow) -> JsonRow:
    """Return an object without what is null, or NaN, which pandas writes for null.

    >>> present({"input": float("nan"), "system": None, "output": "Ho"})
    {'output': 'Ho'}
    """
    return {
        key: value
        for key, value in given.items()
        if not (value is None or (isinstance(value, float) and math.isnan(value)))
    }


def shortened(value: object) -> str:
    """Return the beginning of a name that a file gives, such as a key or a role, in one line.

    >>> shortened("a\\nkey"), shortened("")
    ('a key', '""')
    """
    name = " ".join(str(value)[: 2 * NAME_CHARACTERS].split())[:NAME_CHARACTERS] or '""'
    return name.encode(errors="backslashreplace").decode()


def checked_text(value: object) -> str:
    """Return a value that must be text.

    Raises:
        UnusableError: it is not, or it cannot be encoded.
    """
    if not isinstance(value, str):
        raise UnusableError("a message without text")
    if not is_unicode(value):
        raise UnusableError("half a surrogate pair")
    return value


def unfolded(value: object) -> object:
    """Return the list or object that a string holds as JSON; any other value as it is.

    >>> unfolded('["a", "b"]'), unfolded("[sic]")
    (['a', 'b'], '[sic]')
    """
    if not (isinstance(value, str) and value.lstrip().startswith(("[", "{"))):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return value


def json_of(value: object) -> str:
    """Return a value as JSON; times, decimals, bytes and the like are text in it (times ISO's).

    Raises:
        UnusableError: a value in it has no text either, such as bytes that are not UTF-8, or is a
            number without a value (NaN).

    >>> import datetime
    >>> json_of({"day": datetime.date(2026, 5, 17), "of": None})
    '{"day": "2026-05-17", "of": null}'
    """
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False, default=to_jsonable_python)
    except (TypeError, ValueError) as error:
        raise UnusableError("a tool's value that JSON cannot represent") from error
    return checked_text(written)


def truth(value: object) -> bool | None:
    """Return whether a mark is set (true, 1, or text that says so); None if it says neither.

    >>> truth("False"), truth(1.0), truth("0.00"), truth(0.5)
    (False, True, False, None)
    """
    said = str(value).strip().casefold()
    if said in ("true", "false"):
        return said == "true"
    try:
        return {0.0: False, 1.0: True}.get(float(said))
    except ValueError:
        return None
