"""Whatever a text in JSON holds, reading it returns a harmless value or raises a ValueError."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from mlxchat.json_text import MOST_DIGITS, MOST_NESTED, as_type, parse_json, parse_json_as


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        (b"5", 5),
        ('{"a": [1, -2.5, true, "\\u00e9"]}', {"a": [1, -2.5, True, "é"]}),
        (b"\xef\xbb\xbf[]", []),
        ("\ufeff[]", []),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\\\ud800"', "\\ud800"),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ("[Infinity, 1e999]", [math.inf, math.inf]),
        ("9" * MOST_DIGITS, 10**MOST_DIGITS - 1),
        ("[" * MOST_NESTED + "]" * MOST_NESTED, ...),
        (json.dumps("[" * 200_000), "[" * 200_000),
        (json.dumps([[]] * 1000), [[]] * 1000),
    ],
)
def test_json_is_read_as_python_reads_it(text: str | bytes, value: object) -> None:
    assert parse_json(text) == (json.loads(text) if value is ... else value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        (b"{", "Expecting property name"),
        ("[" * 200_000, "nested"),
        ("[" * 200_000 + "]" * 200_000, "nested"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested"),
        ('[{"a":' * 51 + "1" + "}]" * 51, "nested"),
        ("9" * 5000, "an integer of 5,000 digits"),
        ("-" + "9" * 400, "an integer of 401 digits"),
        (b'"\xff"', "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        ('{"a": 1}'.encode("utf-32-le"), "."),
        ('"a\nb"', "control character"),
        ("nul", "Expecting value"),
        ("[1] 2", "Extra data"),
    ],
)
def test_every_fault_is_a_value_error(text: str | bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as raised:
        parse_json(text)
    assert len(str(raised.value)) < 200


@given(st.text(st.sampled_from('[]{}":,\\ud8DC0019e-.NaIfnty '), max_size=60) | st.binary())
def test_what_is_read_can_be_printed(text: str | bytes) -> None:
    try:
        value = parse_json(text)
    except ValueError:
        return
    assert json.loads(json.dumps(value)) is not ...


@pytest.mark.parametrize("value", [True, "1", 1.0, None, [1], 1e999])
def test_only_an_integer_is_an_integer(value: object) -> None:
    assert as_type(1, TypeAdapter(int)) == 1
    with pytest.raises(ValueError, match="integer"):
        as_type(value, TypeAdapter(int))


def test_an_array_is_a_tuple() -> None:
    assert as_type([[1, 2.5]], TypeAdapter(tuple[tuple[int, float], ...])) == ((1, 2.5),)


def test_a_text_of_a_type_is_whole_characters() -> None:
    halved = parse_json('["\\ud800"]')
    assert halved == ["\ud800"]
    with pytest.raises(ValueError, match="hex escape"):
        as_type(halved, TypeAdapter(list[str]))


class _Named(BaseModel):
    name: str
    values: list[float] = []


NAMED = TypeAdapter(_Named | float | list[int] | str | None)


@given(
    st.text(st.sampled_from('[]{}":,\\ud8DC0019e-.NaIfnty '), max_size=60)
    | st.binary(max_size=20)
    | st.builds(json.dumps, st.none() | st.floats() | st.lists(st.integers()) | st.text())
)
@example('{"name": "a", "values": [1, NaN], "other": ["\\ud800"]}')
@example('\ufeff{"name": "a", "name": "b"}')
@example('{"name": "\\ud800"}')
@example('{"name": 1}')
def test_reading_as_a_type_at_once_is_the_same(text: str | bytes) -> None:
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        expected = repr(as_type(parse_json(encoded), NAMED))
    except ValueError as error:
        with pytest.raises(type(error)) as raised:
            parse_json_as(encoded, NAMED)
        assert str(raised.value) == str(error)
    else:
        assert repr(parse_json_as(encoded, NAMED)) == expected


def test_what_a_type_leaves_out_is_not_looked_at() -> None:
    deep = "[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1)
    text = f'{{"name": "a", "other": {deep}}}'.encode()
    assert parse_json_as(text, NAMED) == _Named(name="a")
    with pytest.raises(ValueError, match="nested"):
        parse_json_as(text.replace(b"name", b"nome"), NAMED)
