"""Messages as public sets and other programs write them: roles, marks, tool calls, odd values."""

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.cases import GOLDEN

from mlxchat.data.chats import forms, reading, turns
from mlxchat.data.chats.sources import Source
from mlxchat.data.chats.values import UnusableError
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part

BYTES = Tokenizer.train([""], 265)
CASES = GOLDEN / "cases"


def entry(role: str, content: object = None, **others: object) -> dict[str, object]:
    return {"role": role, "content": content, **others}


def talk(*contents: object, system: str | None = None) -> Conversation:
    """A conversation, the user first; a tuple is the assistant's parts."""
    messages = [Message("system", system)] if system else []
    roles = ("user", "assistant")
    messages += [Message(roles[i % 2], content) for i, content in enumerate(contents)]
    return Conversation(tuple(messages))


def learned(conversation: Conversation) -> str:
    """What the assistant learns to say, with a bar for the end of its message."""
    ids, mask = BYTES.render(conversation)
    end = BYTES.special("<|assistant_end|>")
    said = [token for token, is_learned in zip(ids, mask, strict=True) if is_learned]
    return "".join("|" if token == end else BYTES.decode([token]) for token in said)


HI, HO = entry("user", "Hi"), entry("assistant", "Ho")
CALL = '{"name": "find", "arguments": "{}"}'
FUNCTION = {"name": "find", "arguments": "{}"}
CALLED = talk(
    "Find!", (Part("python", CALL), Part("python_output", "3 found"), Part("text", "Three."))
)
FOUND = [entry("function", "3 found", name="find"), entry("assistant", "Three.")]

TAKEN: dict[str, tuple[object, Conversation, set[str]]] = {
    "a developer": (
        [entry("developer", "Be kind."), HI, HO],
        talk("Hi", "Ho", system="Be kind."),
        set(),
    ),
    "roles in any case": (
        [entry("SYSTEM", "Be kind."), entry("User", "Hi"), entry(" Assistant ", "Ho")],
        talk("Hi", "Ho", system="Be kind."),
        set(),
    ),
    "ShareGPT's roles in any case": (
        {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "GPT", "value": "Ho"}]},
        talk("Hi", "Ho"),
        set(),
    ),
    "roles of other programs": (
        {
            "conversations": [
                {"from": "prompter", "value": "Find!"},
                {"from": "function-call", "value": CALL},
                {"from": "Tool_Response", "value": "3 found"},
                {"from": "chatgpt", "value": "Three."},
            ]
        },
        CALLED,
        set(),
    ),
    "conversation as key": ({"conversation": [HI, HO]}, talk("Hi", "Ho"), set()),
    "messages as JSON text": ({"messages": json.dumps([HI, HO])}, talk("Hi", "Ho"), set()),
    "each message as JSON text": (
        {"messages": [json.dumps(HI), json.dumps(HO)]},
        talk("Hi", "Ho"),
        set(),
    ),
    "ShareGPT as JSON text": (
        {"conversations": '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]'},
        talk("Hi", "Ho"),
        set(),
    ),
    "plain strings as parts": (
        [entry("user", ["a", "b"]), entry("assistant", ["c"])],
        talk("a\n\nb", "c"),
        set(),
    ),
    "a row of a table in which others have messages": (
        {"messages": "", "prompt": "Hi", "completion": "", "response": "Ho", "weight": ""},
        talk("Hi", "Ho"),
        set(),
    ),
    "a system key beside a system message": (
        {"system": "top", "messages": [entry("system", "inner"), HI, HO]},
        talk("Hi", "Ho", system="top\n\ninner"),
        {turns.SYSTEM_JOINED},
    ),
    "a system key that says the same": (
        {"system": "top", "messages": [entry("system", "top"), HI, HO]},
        talk("Hi", "Ho", system="top"),
        set(),
    ),
    "a system key in a row of another format": (
        {"system": "top", "prompt": "Hi", "completion": "Ho"},
        talk("Hi", "Ho", system="top"),
        set(),
    ),
    "turns of the user in a row": (
        [HI, entry("user", "there"), HO],
        talk("Hi\n\nthere", "Ho"),
        {turns.JOINED},
    ),
    "turns of the assistant in a row": (
        [HI, HO, entry("assistant", ""), entry("assistant", "Ha")],
        talk("Hi", "Ho\n\nHa"),
        {turns.JOINED},
    ),
    "an answer first": (
        [entry("system", "Be kind."), entry("assistant", "Hello"), HI, HO],
        talk("Hi", "Ho", system="Be kind."),
        {turns.CUT_AT_START},
    ),
    "the earlier function call": (
        [entry("user", "Find!"), entry("assistant", function_call=FUNCTION), *FOUND],
        CALLED,
        set(),
    ),
    "the earlier function call beside no text": (
        [entry("user", "Find!"), entry("assistant", "", function_call=FUNCTION), *FOUND],
        CALLED,
        set(),
    ),
    "tool calls as JSON text": (
        [
            entry("user", "Find!"),
            entry("assistant", tool_calls=json.dumps([{"id": "1", "function": FUNCTION}])),
            *FOUND,
        ],
        CALLED,
        set(),
    ),
    "no function call in a column of them": (
        [HI, {**HO, "function_call": {"name": None, "arguments": None}, "tool_calls": []}],
        talk("Hi", "Ho"),
        set(),
    ),
    "an output that is null, and one that is an object": (
        [
            entry("user", "Find!"),
            entry("function_call", FUNCTION),
            entry("tool"),
            entry("observation", {"found": 3}),
            entry("assistant", "Three."),
        ],
        talk(
            "Find!",
            (
                Part("python", CALL),
                Part("python_output", ""),
                Part("python_output", '{"found": 3}'),
                Part("text", "Three."),
            ),
        ),
        set(),
    ),
}


@pytest.mark.parametrize("row, expected, changes", TAKEN.values(), ids=TAKEN)
def test_a_form_of_public_sets_is_taken_and_changes_are_told(
    row: object, expected: Conversation, changes: set[str]
) -> None:
    usable = forms.read_row(row)
    assert usable.conversation == expected
    assert usable.changes == changes


WRONG, RIGHT = entry("assistant", "wrong"), entry("assistant", "right")


UNMARKED = [{}, {"weight": 1}, {"weight": None}, {"weight": ""}, {"train": "true"}, {"train": 1.0}]
MARKED = [
    *({"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"weight": Decimal(0)}, {"train": False}),
    *({"train": "False"}, {"train": 0}, {"loss": False}, {"weight": 1, "train": False}),
    *({"training": False}, {"weight": Decimal("0.00")}, {"weight": "0.00"}),
]


@pytest.mark.parametrize("mark", MARKED)
def test_an_answer_that_is_marked_is_read_but_not_learnt(mark: dict[str, object]) -> None:
    usable = forms.read_row([HI, WRONG | mark, entry("user", "No."), RIGHT | {"weight": 1}])
    assert usable.conversation == talk(
        "Hi", (Part("text", "wrong", learned=False),), "No.", "right"
    )
    assert learned(usable.conversation) == "right|"
    assert usable.changes == {turns.NOT_LEARNED}
    assert usable.unused == set()


@pytest.mark.parametrize("mark", UNMARKED)
def test_an_answer_is_learnt_unless_it_is_marked(mark: dict[str, object]) -> None:
    assert forms.read_row([HI, RIGHT | mark]) == forms.Usable(talk("Hi", "right"))


def test_a_part_that_is_marked_is_not_learnt() -> None:
    wrong = {"type": "text", "text": "Wrong. ", "train": False}
    usable = forms.read_row([HI, entry("assistant", [wrong, {"type": "text", "text": "Right."}])])
    assert learned(usable.conversation) == "Right.|"
    assert (usable.changes, usable.unused) == ({turns.NOT_LEARNED}, set())
    called = entry("assistant", "Ho", tool_calls=[{"function": FUNCTION, "weight": 0}])
    assert learned(forms.read_row([HI, called, *FOUND]).conversation) == "HoThree.|"


@pytest.mark.parametrize("name", ["train_detail", "training_detail"])
def test_an_answer_marked_within_its_text_is_skipped(name: str) -> None:
    detail = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    with pytest.raises(UnusableError, match="marks within the text of an answer"):
        forms.read_row([HI, HO | {name: detail}])
    assert forms.read_row([HI | {name: detail}, HO | {name: []}]).conversation == talk("Hi", "Ho")


@pytest.mark.parametrize("weight", [0.5, 2, -1, "half", [0], float("nan")])
def test_a_share_of_an_answer_cannot_be_learnt(weight: object) -> None:
    with pytest.raises(UnusableError, match="a weight that is neither 0 nor 1"):
        forms.read_row([HI, RIGHT | {"weight": weight}])


def test_a_turn_of_sharegpt_is_marked_as_well() -> None:
    turns_of = [("human", "Hi", None), ("gpt", "wrong", False), ("human", "No.", None)]
    row = [{"from": who, "value": text, "train": mark} for who, text, mark in turns_of]
    usable = forms.read_row({"conversations": [*row, {"from": "gpt", "value": "right"}]})
    assert learned(usable.conversation) == "right|"


def test_what_follows_the_last_answer_to_learn_is_cut() -> None:
    usable = forms.read_row([HI, RIGHT, entry("user", "Go on."), WRONG | {"weight": 0}])
    assert usable.conversation == talk("Hi", "right")
    assert usable.changes == {turns.CUT_AT_END, turns.NOT_LEARNED}


def test_a_conversation_with_nothing_left_to_learn_is_skipped() -> None:
    with pytest.raises(UnusableError, match="every answer is marked as not to be trained on"):
        forms.read_row([HI, WRONG | {"weight": 0}])
    for row in ({"messages": [HI, HO], "train": False}, {"prompt": "Hi", "completion": "Ho"}):
        with pytest.raises(UnusableError, match="marked as not to be trained on"):
            forms.read_row(row | {"weight": "0"})
    share = forms.read_row({"prompt": "Hi", "completion": "Ho", "weight": 0.3})
    assert share.unused == {"weight"}


def test_answers_in_a_row_are_joined_but_only_one_of_them_is_learnt() -> None:
    usable = forms.read_row([HI, WRONG | {"weight": 0}, RIGHT])
    assert BYTES.decode(BYTES.render(usable.conversation)[0]) == "Hiwrong\n\nright"
    assert learned(usable.conversation) == "\n\nright|"


def test_a_call_that_is_marked_is_not_learnt_while_the_answer_is() -> None:
    row = [entry("user", "Find!"), entry("assistant", function_call=FUNCTION, weight=0), *FOUND]
    usable = forms.read_row(row)
    assert learned(usable.conversation) == "Three.|"
    assert CALL in BYTES.decode(BYTES.render(usable.conversation)[0])


def test_an_end_is_learnt_as_what_it_ends() -> None:
    row = [HI, RIGHT, WRONG | {"train": False}, entry("user", "No."), RIGHT]
    assert learned(forms.read_row(row).conversation) == "rightright|"


def test_a_turn_of_the_user_is_never_learnt_and_that_is_said() -> None:
    usable = forms.read_row([HI | {"train": True}, HO])
    assert (usable.conversation, usable.changes) == (talk("Hi", "Ho"), {turns.ONLY_ANSWERS})
    assert forms.read_row([HI | {"weight": 0}, HO]) == forms.Usable(talk("Hi", "Ho"))


def test_every_key_that_holds_something_but_is_not_used_is_told() -> None:
    row = {
        "id": 7,
        "tools": [{"name": "find"}],
        "empty": [],
        "nothing": None,
        "messages": [
            entry("user", [{"type": "text", "text": "Find!", "cache_control": {}, "lang": "en"}]),
            entry(
                "assistant",
                reasoning_content="Hm",
                tool_calls=[{"id": "1", "index": 0, "function": FUNCTION}],
            ),
            FOUND[0],
            FOUND[1] | {"from": "gpt", "value": "?"},
        ],
    }
    usable = forms.read_row(row)
    assert usable.conversation == CALLED
    assert usable.unused == {"id", "tools", "lang", "reasoning_content", "index", "name"} | {
        "from",
        "value",
    }


KNOWN_TO_PARQUET: dict[str, tuple[pa.DataType, object, str | None]] = {
    "a timestamp": (pa.timestamp("us"), datetime.datetime(2026, 1, 1), '"2026-01-01T00:00:00"'),
    "with its zone": (
        pa.timestamp("ms", "UTC"),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        '"2026-01-01T00:00:00Z"',
    ),
    "nanoseconds": (pa.timestamp("ns"), 5, '"1970-01-01T00:00:00.000000005"'),
    "nanoseconds with their zone": (
        pa.timestamp("ns", "UTC"),
        5,
        '"1970-01-01T00:00:00.000000005Z"',
    ),
    "a difference in nanoseconds": (pa.duration("ns"), 5, None),
    "a time": (pa.time64("ns"), 5, '"00:00:00.000000005"'),
    "the year 20,000": (pa.timestamp("s"), 568971820800, None),
    "an endless time": (pa.duration("s"), 2**62, None),
    "a date": (pa.date32(), datetime.date(2026, 5, 17), '"2026-05-17"'),
    "a difference": (pa.duration("us"), datetime.timedelta(days=1, hours=2), '"P1DT2H"'),
    "a decimal": (pa.decimal128(5, 2), Decimal("1.50"), '"1.50"'),
    "bytes of text": (pa.binary(), "ä".encode(), '"ä"'),
    "other bytes": (pa.binary(), b"\xff\x00", None),
    "a map": (pa.map_(pa.string(), pa.int32()), {"a": 1, "b": 2}, '{"a": 1, "b": 2}'),
    "a map by objects": (
        pa.map_(pa.struct([("k", pa.int8())]), pa.int8()),
        [({"k": 1}, 2)],
        '[[{"k": 1}, 2]]',
    ),
    "a map of times": (
        pa.map_(pa.string(), pa.time64("ns")),
        {"a": 5},
        '{"a": "00:00:00.000000005"}',
    ),
    "no number": (pa.float64(), float("nan"), None),
    "an infinite number": (pa.float64(), float("-inf"), None),
    "a number": (pa.float64(), 0.5, "0.5"),
}


@pytest.mark.parametrize("kind, value, written", KNOWN_TO_PARQUET.values(), ids=KNOWN_TO_PARQUET)
def test_a_value_that_json_does_not_know_is_taken_or_skipped(
    tmp_path: Path, kind: pa.DataType, value: object, written: str | None
) -> None:
    arguments = pa.struct([("x", kind)])
    function = pa.struct([("name", pa.string()), ("arguments", arguments)])
    message = pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("function_call", function),
            ("at", kind),
        ]
    )
    call = {"name": "buy", "arguments": {"x": value}}
    plain = [HI, HO | {"at": value}]
    called = [
        entry("user", "Buy!"),
        entry("assistant", function_call=call),
        entry("tool"),
        entry("assistant", "Bought."),
    ]
    table = pa.table({"messages": pa.array([plain, called], pa.list_(message))})
    pq.write_table(table, tmp_path / "a.parquet")
    conversations, report = reading.read_source(Source(tmp_path / "a.parquet"))
    assert conversations[0] == talk("Hi", "Ho")
    if written is None:
        assert report.skipped == {"a tool's value that JSON cannot represent": 1}
    else:
        assert conversations[1].messages[1].parts[0].text == (
            '{"name": "buy", "arguments": {"x": ' + written + "}}"
        )
    assert report.unused == {"at": 1}


NO_LIST = "messages in a text that is not a JSON list"


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"messages": "[1, 2"}, NO_LIST),
        ({"messages": "[" * 100_000}, NO_LIST),
        ({"messages": "Hi"}, NO_LIST),
        ({"messages": '{"role": "user"}'}, "messages that are not a list"),
        ([HI, HO | {"tool_calls": "find"}], "tool calls that are not a list of objects"),
        ([HI, HO | {"function_call": "auto"}], "tool calls that are not a list of objects"),
        ([HI, HO | {"tool_calls": [3]}], "tool calls that are not a list of objects"),
        ([HI, HO | {"tool_calls": [{"x": "\ud800"}]}], "half a surrogate pair"),
        ([entry("\ud800", "Hi")], r"an unknown role: \ud800"),
        ({"\ud800": 1}, r"unknown format: keys \ud800"),
        ({"messages": '[{"role": "user", "content": "\\ud800"}]'}, "half a surrogate pair"),
        ([HI, entry("function_call"), entry("tool"), HO], "a message without text"),
        ([entry(3, "Hi")], "an unknown role: 3"),
    ],
)
def test_an_odd_value_is_a_reason_to_skip_the_row(row: object, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        forms.read_row(row)
    assert caught.value.reason == reason


def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response": "Ho", "tools": "[]", "weight": 0.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    report = reading.read_source(Source(tmp_path / "a.parquet"))[1]
    assert report.unused == {"tools": 1, "weight": 1}
    assert report.summary().endswith("1 of 1 row used; keys ignored: tools (1), weight (1).")


@pytest.mark.parametrize(
    "name, said",
    {
        "weight0.jsonl": "changed: answers marked as not to be trained on (1)",
        "function_call.jsonl": "keys ignored: name (1)",
        "function_call_empty.jsonl": "keys ignored: name (1)",
        "reasoning.jsonl": "keys ignored: reasoning_content (1)",
        "developer.jsonl": "used",
        "casing.jsonl": "used",
        "consecutive_user.jsonl": "changed: consecutive turns of one role merged (1)",
        "twosystem.jsonl": "changed: system messages merged (1)",
        "jsonstr.jsonl": "used",
        "strparts.jsonl": "used",
        "tool_ts.parquet": "keys ignored: id (1)",
    }.items(),
)
def test_a_file_is_used_to_the_last_row(name: str, said: str) -> None:
    report = reading.read_source(Source(CASES / name))[1]
    assert report.used == report.rows > 0
    assert report.summary().endswith(f"{said}.")
