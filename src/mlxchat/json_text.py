"""Reads JSON that anyone may have written: whatever is wrong with it is a ValueError.

Python's own reader also raises RecursionError, advises to change the interpreter's settings, and
returns values that later code fails on. What `parse_json` returns can be walked and printed
recursively, and each of its integers converts to a float. As Python's reader does, it takes NaN and
Infinity, which Python writes, halves of surrogate pairs, and the last one of equal keys; `as_type`
takes no halves, and NaN and Infinity only where the type does.
"""

import codecs
import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

MOST_NESTED = 100  # arrays and objects within each other
MOST_DIGITS = 300  # of an integer; one of 309 may be too large for a float

Parsed = TypeVar("Parsed")


def parse_json(text: str | bytes) -> object:
    """Return the value of a text in JSON.

    Args:
        text: the text; bytes in UTF-8. A byte order mark before it is ignored.

    Raises:
        ValueError: it is not JSON or not UTF-8, is nested more than `MOST_NESTED` deep, or holds an
            integer of more than `MOST_DIGITS` digits.

    >>> parse_json('{"step": 3}')
    {'step': 3}
    >>> parse_json("[" * 200_000)
    Traceback (most recent call last):
    ValueError: more than 100 values are nested
    """
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value: object = json.loads(decoded.removeprefix("\ufeff"), parse_int=_integer)
    except RecursionError:
        raise ValueError(_NESTED) from None
    if decoded.count("[") + decoded.count("{") > MOST_NESTED and is_deep(value):
        raise ValueError(_NESTED)
    return value


def as_type(value: object, kind: TypeAdapter[Parsed]) -> Parsed:
    """Return what `parse_json` returned as an object of another type.

    Nothing is converted that JSON tells apart: ``true``, ``1.0`` and ``"1"`` are not integers.

    Raises:
        pydantic.ValidationError: it is not of that type; a ValueError.
    """
    return kind.validate_json(json.dumps(value), strict=True)


def parse_json_as(text: bytes, kind: TypeAdapter[Parsed]) -> Parsed:
    """Return what `as_type` makes of a text in JSON, in a fraction of the time.

    No objects are made of what the type leaves out, and nothing in there matters. So the type must
    say what it wants throughout: where it has `Any`, values may be nested deeper than elsewhere.

    Raises:
        ValueError: as `parse_json` and `as_type` raise it.

    >>> parse_json_as(b"[1, 2]", TypeAdapter(list[int]))
    [1, 2]
    """
    try:
        return kind.validate_json(text.removeprefix(codecs.BOM_UTF8), strict=True)
    except ValidationError:
        return as_type(parse_json(text), kind)


_NESTED = f"more than {MOST_NESTED} values are nested"


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def is_unicode(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair, which no UTF-8 can hold.

    >>> is_unicode("ü"), is_unicode("\\ud83e")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_deep(value: object) -> bool:
    """Return whether more than `MOST_NESTED` arrays and objects are within each other."""
    level = [value]
    for _ in range(MOST_NESTED):
        level = [inner for outer in level for inner in _nested(outer)]
        if not level:
            return False
    return True


def _nested(value: object) -> list[object]:
    """Return the arrays and objects directly within a value."""
    if isinstance(value, dict):
        return [inner for inner in value.values() if type(inner) in _NESTING]
    return [inner for inner in value if type(inner) in _NESTING] if isinstance(value, list) else []


_NESTING = (list, dict)  # which are all that the reader makes
