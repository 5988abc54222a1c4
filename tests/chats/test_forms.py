"""Common file formats of conversations are read; rows in an unknown format are refused."""

import gzip
import json
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import packed
from support.any_bytes import BYTES, LINES
from support.places import SHARED, needs_shared

from mlxchat.data.chats import forms, reading, sources
from mlxchat.data.chats.forms import Usable
from mlxchat.data.chats.sources import Source
from mlxchat.data.chats.turns import CUT_AT_END
from mlxchat.data.chats.values import UnusableError
from mlxchat.data.files import ROWS as KINDS
from mlxchat.data.questions.choice import TaskChoice
from mlxchat.errors import MlxchatError
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Message, Part


def said(*turns: str | list[Part], system: str | None = None) -> Conversation:
    """A conversation, the user first."""
    messages = [Message("system", system)] if system else []
    for number, turn in enumerate(turns):
        role = ("user", "assistant")[number % 2]
        messages.append(Message(role, turn if isinstance(turn, str) else tuple(turn)))
    return Conversation(tuple(messages))


def user(text: object) -> dict:
    return {"role": "user", "content": text}


def assistant(text: object) -> dict:
    return {"role": "assistant", "content": text}


def share(*turns: tuple[str, str]) -> dict:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}


CALL, OUTPUT = Part("python", '{"name": "find"}'), Part("python_output", "3 found")
CALLED = said("Find!", [CALL, OUTPUT, Part("text", "Three.")])

USABLE = {
    "messages": ({"messages": [user("Hi"), assistant("Ho")]}, said("Hi", "Ho")),
    "bare list": ([user("Hi"), assistant("Ho")], said("Hi", "Ho")),
    "several turns": (
        [user("Hi"), assistant("Ho"), user("Yes?"), assistant("No.")],
        said("Hi", "Ho", "Yes?", "No."),
    ),
    "a leading system message": (
        [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Ho")],
        said("Hi", "Ho", system="Be kind."),
    ),
    "an empty system message": (
        [{"role": "system", "content": " "}, user("Hi"), assistant("Ho")],
        said("Hi", "Ho"),
    ),
    "nanochat's parts": (
        [
            user("6*7?"),
            assistant(
                [
                    {"type": "text", "text": "It is "},
                    {"type": "python", "text": "6*7"},
                    {"type": "python_output", "text": "42"},
                    {"type": "text", "text": "42."},
                ]
            ),
        ],
        said(
            "6*7?",
            [
                Part("text", "It is "),
                Part("python", "6*7"),
                Part("python_output", "42"),
                Part("text", "42."),
            ],
        ),
    ),
    "OpenAI's text parts": (
        [
            user([{"type": "text", "text": "Read."}, {"type": "text", "text": "A page."}]),
            assistant([{"type": "text", "text": "Read it."}]),
        ],
        said("Read.\n\nA page.", "Read it."),
    ),
    "OpenAI's tool calls": (
        [
            user("Find!"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "3 found"},
            assistant("Three."),
        ],
        CALLED,
    ),
    "ShareGPT": (share(("human", "Hi"), ("gpt", "Ho")), said("Hi", "Ho")),
    "ShareGPT with a system key": (
        {"system": "Be kind.", **share(("user", "Hi"), ("assistant", "Ho"))},
        said("Hi", "Ho", system="Be kind."),
    ),
    "ShareGPT with a tool": (
        share(
            ("human", "Find!"),
            ("function_call", '{"name": "find"}'),
            ("observation", "3 found"),
            ("gpt", "Three."),
        ),
        CALLED,
    ),
    "a call amid words": (
        share(
            ("human", "Find!"),
            ("gpt", "Wait."),
            ("function_call", '{"name": "find"}'),
            ("tool", "3 found"),
            ("gpt", "Three."),
        ),
        said("Find!", [Part("text", "Wait."), CALL, OUTPUT, Part("text", "Three.")]),
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        said("Add.\n\n1 and 2", "3"),
    ),
    "Alpaca without input": (
        {"instruction": "Sing.", "input": "", "output": "La"},
        said("Sing.", "La"),
    ),
    "Alpaca with instances": (
        {
            "instruction": "Add.",
            "instances": [{"input": "1 and 2", "output": "3"}, {"input": "2", "output": "2"}],
        },
        said("Add.\n\n1 and 2", "3"),
    ),
    "Dolly": (
        {"instruction": "Who?", "context": "Ann did.", "response": "Ann", "category": "qa"},
        said("Who?\n\nAnn did.", "Ann"),
    ),
    "GSM8K": (
        {"question": "Half of 48?", "answer": "It is <<48/2=24>>24.\n#### 24"},
        said(
            "Half of 48?",
            [
                Part("text", "It is "),
                Part("python", "48/2"),
                Part("python_output", "24"),
                Part("text", "24.\n#### 24"),
            ],
        ),
    ),
    "question and answer": ({"question": "Who?", "answer": "Ann"}, said("Who?", "Ann")),
    "prompt and completion": ({"prompt": "Who?", "completion": "Ann"}, said("Who?", "Ann")),
    "prompt and response": ({"prompt": "Who?", "response": "Ann"}, said("Who?", "Ann")),
    "OpenOrca": (
        {"system_prompt": "Be kind.", "question": "Who?", "response": "Ann"},
        said("Who?", "Ann", system="Be kind."),
    ),
    "MetaMath": ({"query": "Who?", "response": "Ann"}, said("Who?", "Ann")),
    "FLAN": ({"inputs": "Who?", "targets": "Ann"}, said("Who?", "Ann")),
    "TRL's prompt and completion of messages": (
        {"prompt": [user("Who?")], "completion": [assistant("Ann")]},
        said("Who?", "Ann"),
    ),
    "messages as the JSON text of a prompt, with an answer": (
        {"prompt": json.dumps([user("Who?")]), "response": "Ann"},
        said("Who?", "Ann"),
    ),
    "a prompt that is JSON, but no messages": (
        {"prompt": '[{"a": 1}]', "completion": "Ann"},
        said('[{"a": 1}]', "Ann"),
    ),
    "pandas' NaN for null": (
        {"instruction": "Who?", "input": float("nan"), "output": "Ann", "system": float("nan")},
        said("Who?", "Ann"),
    ),
    "nulls, as parquet has them": (
        {"messages": None, "prompt": "Who?", "completion": None, "response": "Ann"},
        said("Who?", "Ann"),
    ),
}

UNUSABLE = {
    "neither an object nor a list of messages": [3, "text", None, True],
    "no messages": [[], {"messages": []}, {"messages": [{"role": "system", "content": ""}]}],
    'unknown format: keys "", a b': [{"\n": 1, "a\nb": 2}],
    "unknown format: keys a, b": [{"b": 1, "a": 2}],
    "unknown format: no keys": [{}, {"a": None}],
    "messages that are not a list": [{"messages": 3}, {"conversations": {"from": "human"}}],
    "a message that is not an object": [["Hi", "Ho"]],
    "an unknown role: critic": [[{"role": "critic", "content": "Hm"}]],
    "an unknown role: None": [[{"content": "Hm"}]],
    "a message without text": [
        [user(None), assistant("Ho")],
        [user(3), assistant("Ho")],
        [user("Hi"), assistant(None)],
        {"question": "Who?", "answer": 3},
    ],
    "a part of an unknown type: image_url": [
        [user([{"type": "image_url", "image_url": "x"}]), assistant("Ho")]
    ],
    "a part without text": [[user("Hi"), assistant([{"type": "text"}])]],
    "a tool's part in a message that is not the assistant's": [
        [user([{"type": "python", "text": "1"}]), assistant("Ho")]
    ],
    "no question": [[assistant("Ho")], [{"role": "system", "content": "Be kind."}]],
    "a system message in the middle of the conversation": [
        [user("Hi"), {"role": "system", "content": "Be kind."}, assistant("Ho")],
    ],
    "no answer": [[user("Hi")], [{"role": "system", "content": "Be kind."}, user("Hi")]],
    "an empty question": [[user(" "), assistant("Ho")], [user("")]],
    "an empty answer": [
        [user("Hi"), assistant("")],
        [user("Hi"), assistant([])],
        [user("Hi"), assistant("\n"), user("Hi?"), assistant("Ho")],
        {"question": "Who?", "answer": ""},
    ],
    "a tool's output without its call": [
        share(("human", "Hi"), ("observation", "3"), ("gpt", "Three.")),
        share(("human", "Hi"), ("gpt", "Wait."), ("observation", "3"), ("gpt", "Three.")),
    ],
    "a tool call with nothing after it": [
        share(("human", "Find!"), ("function_call", "find")),
        share(("human", "Find!"), ("function_call", "find"), ("gpt", "Three.")),
        share(("human", "Find!"), ("function_call", "find"), ("observation", "3")),
        share(("human", "Hi"), ("function_call", "f"), ("human", "Hi"), ("gpt", "Ho")),
    ],
    "half a surrogate pair": [[user("\ud800"), assistant("Ho")]],
    "no choices": [{"question": "Who?", "choices": [], "answer": 0}],
    "choices without a label each": [
        {"question": "Who?", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}
    ],
    "an answer that is none of the choices": [
        {"question": "Who?", "choices": ["a", "b"], "answer": 2},
        {"question": "Who?", "choices": ["a", "b"], "answer": -1},
        {"question": "Who?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": ""},
    ],
    "no instances": [{"instruction": "Add.", "instances": []}],
}


@pytest.mark.parametrize("row, expected", USABLE.values(), ids=USABLE)
def test_a_common_format_is_read(row: object, expected: Conversation) -> None:
    assert forms.read_row(row).conversation == expected


@pytest.mark.parametrize(
    "reason, row", [(reason, row) for reason, rows in UNUSABLE.items() for row in rows]
)
def test_an_unusable_row_is_refused_with_its_reason(reason: str, row: object) -> None:
    with pytest.raises(UnusableError) as caught:
        forms.read_row(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "end",
    [
        [user("More?")],
        [user("More?"), assistant(" ")],
        [user("More?"), {"role": "function_call", "content": "find"}],
        [{"role": "system", "content": "Stop."}],
    ],
)
def test_everything_after_the_last_answer_is_cut(end: list) -> None:
    row = [user("Hi"), assistant("Ho"), *end]
    assert forms.read_row(row) == Usable(said("Hi", "Ho"), frozenset({CUT_AT_END}))


def test_multiple_choice_is_worded_as_in_nanochat() -> None:
    expected = (
        "Multiple Choice question: Who barks?\n- cat=A\n- dog=B\n\n"
        "Respond only with the letter of the correct answer."
    )
    mmlu = {"question": "Who barks?", "choices": ["cat", "dog"], "answer": 1, "subject": "pets"}
    arc = {
        "question": "Who barks?",
        "choices": {"text": ["cat", "dog"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    numbered_in_csv = {**mmlu, "choices": '["cat", "dog"]', "answer": "1"}
    auxiliary = {"train": mmlu}  # a row of MMLU's auxiliary_train on the hub
    for row in (mmlu, arc, numbered_in_csv, auxiliary):
        assert forms.read_row(row).conversation == said(expected, "B")


@pytest.mark.parametrize(
    "labels, answer, letter",
    [("1234", 1, "1"), ("1234", "3", "3"), ("ABCD", 1, "B"), ("0123", 0, "0")],
)
def test_a_number_is_a_label_before_it_is_a_place(labels: str, answer: object, letter: str) -> None:
    choices = {"text": list("wxyz"), "label": list(labels)}
    row = {"question": "Which?", "choices": choices, "answerKey": answer}
    assert forms.read_row(row).conversation.messages[1].text == letter


def test_only_what_the_assistant_says_is_learned() -> None:
    tokenizer = Tokenizer.train(["some text"], 265)
    ids, mask = tokenizer.render(CALLED)
    learned = [token for token, is_learned in zip(ids, mask, strict=True) if is_learned]
    assert tokenizer.decode(learned) == '{"name": "find"}Three.'
    assert "3 found" in tokenizer.decode(ids)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*sorted(forms.KEYS), "role", "from", "content", "value", "type"])
            | st.text(max_size=5),
            inner | st.sampled_from(["user", "assistant", "gpt", "tool", "function_call", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", "function_call"]),
        "content": st.sampled_from(["", "a", "b c", None, [], [{"type": "python", "text": "1"}]]),
    },
    optional={
        "weight": st.sampled_from([0, 1, "0", 0.5, None]),
        "train": st.booleans(),
        "function_call": st.sampled_from([{"name": "f", "arguments": "{}"}, "auto", None, {}]),
        "tool_calls": st.sampled_from(["[]", [], [{"function": {"name": "f"}}], [3]]),
    },
)
BYTES_ONLY = Tokenizer.train([""], 265)


@given(JSON | st.lists(ENTRIES, max_size=6))
def test_any_row_is_a_conversation_or_refused(row: object) -> None:
    try:
        conversation = forms.read_row(row).conversation
    except UnusableError as error:
        assert error.reason
        assert len(error.reason) < 250
        return
    turns = conversation.turns()
    assert turns[-1].role == "assistant"
    assert any(part.learned for part in turns[-1].parts)
    assert all(turn.text.strip() for turn in turns)
    assert any(BYTES_ONLY.render(conversation)[1])


def test_a_source_is_a_path_with_an_optional_weight(tmp_path: Path) -> None:
    odd = tmp_path / "a:3"
    odd.write_text("")
    assert sources.parse("chats.jsonl") == Source(Path("chats.jsonl"), 1)
    assert sources.parse("chats.jsonl:0.5") == Source(Path("chats.jsonl"), 0.5)
    assert sources.parse(str(odd)) == Source(odd, 1)
    assert sources.parse(f"{odd}:2") == Source(odd, 2)
    assert sources.parse("builtin") == Source(None, 1)
    assert sources.parse("builtin:2") == Source(None, 2)
    assert str(sources.parse("builtin:2")) == "builtin"
    task = sources.parse("arithmetic-4-calculator:0.5")
    assert task == Source(None, 0.5, task=TaskChoice("arithmetic", 4, calculator=True))
    assert str(task) == "arithmetic-4-calculator" and not task.is_corpus
    assert sources.parse("./arithmetic") == Source(Path("arithmetic"))


@pytest.mark.parametrize("tail", ["abc", "0", "-1", "nan", "inf", "1e9", ""])
def test_a_weight_is_a_positive_number(tail: str) -> None:
    with pytest.raises(MlxchatError, match="is not a weight") as caught:
        sources.parse(f"chats.jsonl:{tail}")
    assert "chats.jsonl:3" in caught.value.remedy


@pytest.mark.parametrize("text", ["", ":3"])
def test_a_source_has_a_name(text: str) -> None:
    with pytest.raises(MlxchatError):
        sources.parse(text)


ROWS = [[user(f"Say {number}."), assistant(str(number))] for number in range(20)]


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"messages": row} for row in ROWS]
    conversations, report = reading.read_source(Source(write(tmp_path / f"chats{suffix}", rows)))
    assert conversations == [forms.read_row(row).conversation for row in ROWS]
    assert (report.rows, report.used, report.changed, report.skipped) == (20, 20, {}, {})


def test_a_table_and_packed_files_hold_rows_too(tmp_path: Path) -> None:
    table = 'instruction,output,note\nSay 1.,1,x\n"Say\n2.","2, two",\n'
    expected = [said("Say 1.", "1"), said("Say\n2.", "2, two")]
    (tmp_path / "chats.csv").write_text(table)
    assert reading.read_source(Source(tmp_path / "chats.csv"))[0] == expected
    (tmp_path / "chats.csv.gz").write_bytes(gzip.compress(table.encode("utf-16")))
    assert reading.read_source(Source(tmp_path / "chats.csv.gz"))[0] == expected
    binary = pa.table({"prompt": [b"Hi"], "response": ["Hö".encode()]})
    pq.write_table(binary, tmp_path / "chats.parquet")
    assert reading.read_source(Source(tmp_path / "chats.parquet"))[0] == [said("Hi", "Hö")]


def test_bad_lines_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", ROWS)
    with path.open("ab") as file:
        file.write(b'{"messages"\n' + b"9" * 5000 + b"\n[\xff]\n")
    source = sources.parse(f"{path}:2", skip_bad=True)
    conversations, report = reading.read_source(source)
    assert len(conversations) == 20 and report.rows == 23 and source.weight == 2
    assert report.skipped == {"is not valid JSON": 2, "is not UTF-8": 1}
    assert report.examples[0] == f"{path}, line 21: is not valid JSON"
    with pytest.raises(MlxchatError, match="line 21 is not valid JSON") as caught:
        reading.read_source(Source(path))
    assert "`skip_bad`" in caught.value.remedy


@pytest.mark.parametrize("bomb", [packed.in_a_list, packed.in_rows_of_lists])
def test_a_small_file_that_stands_for_much_is_refused(
    tmp_path: Path, bomb: Callable[[Path], Path]
) -> None:
    with pytest.raises(
        MlxchatError, match=r"chats\.parquet.* than (the )?(maximum of )?\d\d,000,000 "
    ):
        reading.read_source(Source(bomb(tmp_path / "chats.parquet")))


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b" / "2.jsonl", ROWS[10:])
    write(tmp_path / "a.json", ROWS[:10])
    write(tmp_path / ".hidden" / "3.jsonl", ROWS)
    (tmp_path / "manifest.json").write_text('["00000.parquet"]')
    (tmp_path / "notes.txt").write_text("notes")
    conversations, report = reading.read_source(Source(tmp_path))
    assert conversations == [forms.read_row(row).conversation for row in ROWS]
    assert report.passed_over == "1 hidden (.hidden); 1 of another type (notes.txt)"
    assert report.summary().endswith(f"; files ignored: {report.passed_over}.")


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    bad = [[user("Hi")]] * 7 + [{"text": "no conversation"}]
    cut = [[*ROWS[0], user("More?")]] * 3
    path = write(tmp_path / "chats.jsonl", [*bad, *ROWS, *cut])
    conversations, report = reading.read_source(Source(path))
    assert len(conversations) == report.used == 23
    assert report.rows == 31 == report.used + sum(report.skipped.values())
    assert report.skipped == {"no answer": 7, "unknown format: keys text": 1}
    assert report.changed == {CUT_AT_END: 3}
    assert report.examples[0] == f"{path}, line 1: no answer"
    assert len(report.examples) == reading.EXAMPLES
    assert report.summary() == (
        f"{path}: 23 of 31 rows used; changed: text after the last answer dropped (3); "
        f"skipped: no answer (7), unknown format: keys text (1), first {path}, line 1: no answer."
    )


def test_reasons_beyond_the_first_are_counted(tmp_path: Path) -> None:
    bad = [[{"x" * number: "?"}] * number for number in range(1, 8)]
    path = write(tmp_path / "chats.jsonl", [ROWS[0], *chain.from_iterable(bad)])
    summary = reading.read_source(Source(path))[1].summary()
    assert summary.startswith(
        f"{path}: 1 of 29 rows used; skipped: unknown format: keys xxxxxxx (7)"
    )
    assert "keys xxx (3) and 2 others (3 rows), first" in summary
    path = write(tmp_path / "fewer.jsonl", [ROWS[0], *chain.from_iterable(bad[:5]), {"y": "?"}])
    assert " and 1 other (1 row), first" in reading.read_source(Source(path))[1].summary()
    assert " 1 of 1 row used" in reading.read_source(Source(write(path, ROWS[:1])))[1].summary()


SPLITS = [
    "main/test/0.jsonl",
    "main/Validation/0.jsonl",
    "main/dev/deep/0.jsonl",
    "flat/test-00000-of-00002.jsonl",
    "flat/test-00001-of-00002.jsonl",
    "flat/dev.jsonl",
]


def test_splits_for_evaluation_are_left_out_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "test"  # its own name does not count
    training = ["main/train/0.jsonl", "flat/train-00000-of-00001.jsonl", "tests/latest.jsonl"]
    for name in [*SPLITS, *training]:
        write(root / name, ROWS[:2])
    conversations, report = reading.read_source(Source(root))
    assert [str(path.relative_to(root)) for path in sources.listing(Source(root)).files] == sorted(
        training
    )
    assert len(conversations) == report.rows == 6
    left_out = ["flat/dev.jsonl", *SPLITS[3:5], "main/Validation", "main/dev", "main/test"]
    assert report.left_out == tuple(str(root / name) for name in left_out)
    assert report.summary().endswith(f", {root}/main/dev and 1 more.")
    for name in SPLITS:
        assert reading.read_source(Source(root / name))[1].left_out == ()
    assert reading.read_source(Source(root / "main" / "dev"))[1].rows == 2


def test_a_folder_with_only_evaluation_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test" / "0.jsonl", ROWS)
    with pytest.raises(MlxchatError, match=r"is meant for evaluation, such as .*test") as caught:
        reading.read_source(Source(tmp_path))
    assert "name the file itself" in caught.value.remedy


@needs_shared
def test_rows_that_a_task_is_scored_on_are_not_trained_on() -> None:
    for name in ("openai--gsm8k", "cais--mmlu", ""):
        files, left_out, _ = sources.listing(Source(SHARED / "data" / "task_data" / name))
        assert {file.parent.name for file in files} <= {"train", "auxiliary_train"}
        assert {folder.name for folder in left_out} <= {"test", "validation", "dev"} and left_out


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.jsonl", b'[]\n{"messages"\n', r"a.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", b"[]\n\xff\n", r"a.jsonl, line 2 is not UTF-8"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl, line 1 is not valid JSON"),
        ("a.jsonl", b"", r"a.jsonl is empty"),
        (
            "a.jsonl",
            b"[]\n{}\n[]\n",
            r"3 rows, none of which .*: no messages \(2\), unknown format",
        ),
        ("a.json", b"{}", r"a.json does not contain a list"),
        ("a.json", b"[1, ", r"a.json is not valid JSON"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet is damaged"),
        ("a.txt", b"Hello", r"a.txt holds text, not conversations"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MlxchatError, match=problem) as caught:
        reading.read_source(Source(tmp_path / name))
    assert caught.value.remedy
    assert "\n" not in caught.value.problem


@given(st.sampled_from(KINDS), BYTES | st.lists(LINES).map(b",".join))
def test_any_bytes_are_conversations_or_a_clear_error(suffix: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"chats{suffix}"
        path.write_bytes(content)
        with pytest.raises(MlxchatError) as caught:  # no such bytes hold a conversation
            reading.read_source(Source(path))
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in caught.value.problem and len(caught.value.problem) < 600


def test_a_parquet_file_of_something_else_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(MlxchatError, match=r"no column with conversations .its columns: text"):
        reading.read_source(Source(tmp_path / "a.parquet"))


def test_columns_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    times = pa.array([1], pa.timestamp("ns"))  # Python's clock has no nanoseconds
    rows = pa.table({"prompt": ["Hi"], "response": ["Ho"], "at": times})
    pq.write_table(rows, tmp_path / "a.parquet")
    assert reading.read_source(Source(tmp_path / "a.parquet"))[0] == [said("Hi", "Ho")]


def test_a_folder_without_conversations_is_named(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError, match=r"There is no \.jsonl"):
        reading.read_source(Source(tmp_path))
    with pytest.raises(MlxchatError, match="does not exist"):
        reading.read_source(Source(tmp_path / "missing"))


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    "path", sorted((SHARED / "data" / "sft").glob("*.json*")), ids=lambda path: path.name
)
def test_real_files_are_read_completely(path: Path) -> None:
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else text.splitlines()
    conversations, report = reading.read_source(Source(path))
    assert report.rows == len(rows) == report.used + sum(report.skipped.values())
    assert len(conversations) == report.used == len(rows)  # none of these need be skipped
    is_identity = path.name == "identity_conversations.jsonl"
    assert report.changed == ({CUT_AT_END: 4} if is_identity else {})


@needs_shared
@pytest.mark.parametrize(
    "folder", ["openai--gsm8k/main/test", "allenai--ai2_arc/ARC-Easy/test", "cais--mmlu/all/dev"]
)
def test_tasks_can_be_trained_on(folder: str) -> None:
    _, report = reading.read_source(Source(SHARED / "data" / "task_data" / folder))
    assert report.used == report.rows > 200
