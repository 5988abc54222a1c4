"""Questions of files: GSM8K as it is, one's own rows, and what is wrong with others."""

import json
from pathlib import Path

import pytest
from support.places import SHARED, needs_shared

from mlxchat.data.questions.question import QuestionSource
from mlxchat.data.questions.tasks import questions_of
from mlxchat.errors import ConfigError, DataError, MlxchatError, NotFound

NOWHERE = Path("nowhere")


def written(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def capitals(count: int) -> list[object]:
    return [{"question": f"Capital of {i}?", "answer": f"Town {i}"} for i in range(count)]


def opened(path: Path, seed: int = 1) -> QuestionSource:
    return questions_of(str(path), seed=seed, task_data=NOWHERE)


def test_plain_answers_are_compared_as_they_are(tmp_path: Path) -> None:
    source = opened(written(tmp_path / "own.jsonl", capitals(40)))
    assert (len(source.train), len(source.held_out), source.check) == (36, 4, "exact")
    for question in (*source.train, *source.held_out):
        number = question.prompt.removeprefix("Capital of ").removesuffix("?")
        assert question.answer == question.reply.text == f"Town {number}"
        assert source.is_right(question, f"Town {number}\n")
        assert not source.is_right(question, "Town")
    prompts = {question.prompt for question in source.train}
    assert len(prompts) == 36 and not prompts & {question.prompt for question in source.held_out}


def test_solutions_are_compared_by_their_number(tmp_path: Path) -> None:
    rows = [
        {"question": f"{i} + {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}"}
        for i in range(10)
    ]
    source = opened(written(tmp_path / "own.jsonl", rows))
    assert source.check == "number"
    for question in source.train:
        i = int(question.prompt.split()[0])
        assert question.answer == str(2 * i)
        parts = [(part.type, part.text) for part in question.reply.parts]
        assert parts == [
            ("text", "It is "),
            ("python", f"{i}+{i}"),
            ("python_output", str(2 * i)),
            ("text", f"{2 * i}.\n#### {2 * i}"),
        ]


def test_a_number_is_an_answer(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": i / 2 if i % 2 else i} for i in range(4)]
    source = opened(written(tmp_path / "own.jsonl", rows))
    answers = {q.prompt: q.answer for q in (*source.train, *source.held_out)}
    assert answers == {"0?": "0", "1?": "0.5", "2?": "2", "3?": "1.5"}


def test_what_is_held_out_depends_on_the_questions_alone(tmp_path: Path) -> None:
    rows = capitals(40)
    one = opened(written(tmp_path / "a.jsonl", rows), seed=1)
    other = opened(written(tmp_path / "b.jsonl", [*rows[::-1], *rows[:20]]), seed=2)
    assert one.held_out == other.held_out
    assert one.train != other.train
    assert {q.prompt for q in one.train} == {q.prompt for q in other.train}
    again = opened(tmp_path / "a.jsonl", seed=1)
    assert again.train == one.train


def test_two_questions_suffice(tmp_path: Path) -> None:
    source = opened(written(tmp_path / "own.jsonl", capitals(2)))
    assert len(source.train) == len(source.held_out) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "1?"}], "line 1 has no text named 'answer'"),
        ([*capitals(3), {"answer": "2"}], "line 4 has no text named 'question'"),
        ([*capitals(1), {"question": " ", "answer": "2"}], "line 2 has no text named 'question'"),
        ([{"question": "1?", "answer": True}], "line 1 has no text named 'answer'"),
        ([{"question": "1?", "answer": float("nan")}], "line 1 has no text named 'answer'"),
        ([{"question": float("inf"), "answer": "2"}], "line 1 has no text named 'question'"),
        ([{"question": "1?", "answer": ["2"]}], "line 1 has no text named 'answer'"),
        ([{"question": "1?", "answer": "\ud800"}], "line 1 has no text named 'answer'"),
        ([*capitals(2), ["1?", "2"]], "line 3 is not an object"),
        ([{"question": "1?", "answer": "#### two"}], "line 1 has no number after ####"),
        ([{"question": "1?", "answer": "#### 2"}, *capitals(1)], "line 2 has no number after ####"),
        (capitals(1), "fewer than two questions"),
        (capitals(1) * 3, "fewer than two questions"),
        ([], "fewer than two questions"),
    ],
)
def test_a_row_that_is_none_is_named(rows: list[object], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", rows)
    with pytest.raises(DataError) as caught:
        opened(path)
    assert said in caught.value.problem and str(path) in caught.value.problem


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "1?", "answer": "2"}\n{"question": \n')
    with pytest.raises(DataError) as caught:
        opened(path)
    assert f"{path}, line 2" in caught.value.problem
    assert caught.value.remedy == "Correct it."  # rl has no setting to skip it


def test_what_is_no_task_is_said(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("1?")
    for task, kind, said in (
        ("arithmetics", NotFound, "arithmetic, spelling, counting, gsm8k"),
        (str(tmp_path / "own.txt"), DataError, ".jsonl"),
        (str(tmp_path), DataError, ".jsonl"),
    ):
        with pytest.raises(kind) as caught:
            questions_of(task, seed=1, task_data=NOWHERE)
        assert said in str(caught.value)


def test_files_have_no_levels(tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", capitals(5))
    for options in ({"level": 1}, {"calculator": True}):
        with pytest.raises(ConfigError):
            questions_of(str(path), seed=1, task_data=NOWHERE, **options)


def test_gsm8k_without_its_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(MlxchatError) as caught:
        questions_of("gsm8k", seed=1, task_data=tmp_path)
    assert "openai--gsm8k/main/train" in caught.value.problem
    assert "openai/gsm8k, config main, split train" in caught.value.remedy


@needs_shared
def test_gsm8k_is_its_training_split() -> None:
    source = questions_of("gsm8k", seed=1, task_data=SHARED / "data" / "task_data")
    assert (len(source.train), len(source.held_out), source.check) == (6726, 747, "number")
    for question in source.held_out:
        assert source.is_right(question, question.reply.text)
