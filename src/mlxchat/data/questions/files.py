"""Questions of files: GSM8K, and any file of rows with a question and an answer.

An answer is a solution that ends in ``#### `` and a number, as GSM8K's, or else the very text to
answer with. Which questions are held out depends on their texts alone, so that copies of a question
stay together. Of GSM8K it is a part of the training split: the test split, on which `eval chat`
measures, decides nothing.
"""

import hashlib
import math
from pathlib import Path
from random import Random

from mlxchat.data.chats.forms import solution
from mlxchat.data.chats.turns import spoken
from mlxchat.data.chats.values import UnusableError, checked_text
from mlxchat.data.files import ROWS, Wanted, kind
from mlxchat.data.questions.question import (
    ANSWER,
    QuestionSource,
    TaskQuestion,
    final_number,
    user_question,
)
from mlxchat.data.rows import rows
from mlxchat.data.text_files import Reading
from mlxchat.errors import DataError, NotFound
from mlxchat.tokenizer.messages import Message

GSM8K_TRAIN = Path("openai--gsm8k/main/train")  # in the folder of task data
HELD_OUT_SHARE = 0.1  # of the different questions
_COLUMNS = Wanted(("question", "answer"), "questions")
_ROW = 'Write rows like {"question": "How many?", "answer": "6 * 7 = 42\\n#### 42"}.'


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a split by name; none if the folder does not exist."""
    return sorted(folder.glob("*.parquet"))


def split_files(folder: Path) -> list[Path]:
    """Return the parquet files of a split of a task.

    Raises:
        NotFound: there is none.
    """
    paths = parquet_files(folder)
    if not paths:
        organisation, _, name = folder.parent.parent.name.partition("--")
        raise NotFound(
            f"There is no task data in {folder}.",
            f"Put the parquet files of {organisation}/{name}, config {folder.parent.name}, split "
            f"{folder.name}, there, or name the folder of your task data with `task_data`.",
        )
    return paths


def gsm8k_questions(task_data: Path, seed: int) -> QuestionSource:
    """Return the questions of GSM8K's training split.

    Raises:
        MlxchatError: its files are missing or damaged.
    """
    return _source("gsm8k", split_files(task_data / GSM8K_TRAIN), seed)


def file_questions(path: Path, seed: int) -> QuestionSource:
    """Return the questions of a file.

    Raises:
        DataError: a row has no question or answer, some answers are solutions and others are not,
            or there are fewer than two questions.
    """
    if not path.is_file() or kind(path) not in ROWS:
        raise DataError(f"{path} is not a file that ends in {', '.join(ROWS)}.", _ROW)
    return _source(str(path), [path], seed)


def _source(name: str, paths: list[Path], seed: int) -> QuestionSource:
    read = [
        (place, _question(place, row))
        for path in paths
        for place, row in rows(Reading(path, settable=False), _COLUMNS)
    ]
    solved = [final_number(question.reply.text) is not None for _, question in read]
    if any(solved) and not all(solved):
        raise DataError(
            f"The answer of {read[solved.index(False)][0]} has no number after {ANSWER.strip()}, "
            "as others have.",
            "Write either all answers as solutions, or none of them.",
        )
    keys = [_key(question) for _, question in read]
    ranked = sorted(set(keys))
    if len(ranked) < 2:
        raise DataError(
            f"{name} has fewer than two questions: one to train on and one to measure on.", _ROW
        )
    kept = set(ranked[: max(1, round(HELD_OUT_SHARE * len(ranked)))])
    by_key = dict(zip(keys, (question for _, question in read), strict=True))
    train = [question for key, (_, question) in zip(keys, read, strict=True) if key not in kept]
    Random(f"questions/{seed}").shuffle(train)
    held_out = [by_key[key] for key in ranked if key in kept]
    return QuestionSource(name, train, held_out, "number" if any(solved) else "exact")


def _key(question: TaskQuestion) -> str:
    return hashlib.sha256(question.prompt.strip().encode()).hexdigest()


def _question(place: str, row: object) -> TaskQuestion:
    """Return the question of a row.

    Raises:
        DataError: the row is no object with a question and an answer.
    """
    if not isinstance(row, dict):
        raise DataError(f"{place} is not an object.", _ROW)
    asked, text = _text(place, row, "question"), _text(place, row, "answer")
    number = final_number(text)
    if number is None and ANSWER in text:
        raise DataError(f"The answer of {place} has no number after {ANSWER.strip()}.", _ROW)
    reply = Message("assistant", text.strip()) if number is None else spoken(solution(text))
    return user_question(asked, text.strip() if number is None else number, reply)


def _text(place: str, row: dict[str, object], key: str) -> str:
    """Return a text of a row; a number is taken for the text that it is written as."""
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    try:
        text = checked_text(value)
    except UnusableError:
        text = ""
    if not text.strip():
        raise DataError(f"{place} has no text named {key!r}.", _ROW)
    return text
