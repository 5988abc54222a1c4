"""The tasks: where their files are, and how a row of them becomes a problem.

What a task asks, and when an answer is right.

The forms and rules are nanochat's (commit 92d63d4, tasks/), so that its models see what they know
and scores can be compared.

The rows of evaluation tasks, from parquet files as the hub lays them out.

A folder of task data holds ``<organisation>--<name>/<config>/<split>/*.parquet``.
"""

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError, model_validator

from mlxchat.config.inference import TaskName
from mlxchat.data.chats import spelling
from mlxchat.data.chats.forms import multiple_choice
from mlxchat.errors import DataError, NotFound
from mlxchat.evaluate.execution import runs_through
from mlxchat.tokenizer.messages import Conversation, Message

_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_FENCED = re.compile(r"```(?:python)?[ \t]*\n(.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """A question with answers to choose among.

    Attributes:
        prompt: ends with the user.
        letters: of the answers.
        answer: the right one's letter.
    """

    prompt: Conversation
    letters: tuple[str, ...]
    answer: str

    @property
    def random(self) -> float:
        """What guessing gets right."""
        return 1 / len(self.letters)


@dataclass(frozen=True)
class Exercise:
    """A question whose answer is written.

    Attributes:
        prompt: ends with the user.
        is_right: whether that answer is.
    """

    prompt: Conversation
    is_right: Callable[[str], bool]

    @property
    def random(self) -> float:
        """What guessing gets right: nothing."""
        return 0.0


Problem = Choice | Exercise


def asked(text: str) -> Conversation:
    """A conversation in which a user has said this and nothing else was said."""
    return Conversation((Message("user", text),))


def final_number(text: str) -> str | None:
    """The number after the first ``#### ``, without commas, as it is written (GSM8K's rule).

    So 18.0 is another answer than 18. None where there is no such number.
    """
    found = _NUMBER.search(text)
    return found[1].replace(",", "") if found else None


def program(prompt: str, answer: str, test: str, entry_point: str) -> str:
    """What is run to judge an answer to a HumanEval prompt.

    The imports that the prompt begins with, the answer's first fenced block of code, or all of it
    where there is none, then the task's test.
    """
    imports = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    fenced = _FENCED.search(answer)
    code = (fenced[1] if fenced else answer).strip()
    return "\n\n".join(["\n".join(imports), code, test, f"check({entry_point})"])


def gives_number(expected: str) -> Callable[[str], bool]:
    """Judges an answer by its `final_number`."""
    return lambda answer: final_number(answer) == expected


def solves(prompt: str, test: str, entry_point: str) -> Callable[[str], bool]:
    """Judges an answer by running it: see `mlxchat.evaluate.execution`."""
    return lambda answer: runs_through(program(prompt, answer, test, entry_point))


REASON_CHARACTERS = 200  # of what pyarrow says is wrong


def files(folder: Path) -> list[Path]:
    """The parquet files of a split's folder, in the order of their names; none where it is not."""
    return sorted(folder.glob("*.parquet"))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a split, file after file, each by the names of its columns.

    Raises:
        MlxchatError: the folder has no parquet file, or one is damaged.
    """
    paths = files(folder)
    if not paths:
        organisation, _, name = folder.parent.parent.name.partition("--")
        raise NotFound(
            f"There is no task data in {folder}.",
            f"Put the parquet files of {organisation}/{name}, config {folder.parent.name}, split "
            f"{folder.name} there; or name the folder of your task data with `task_data`.",
        )
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:REASON_CHARACTERS]
            raise DataError(
                f"{path} cannot be read: {reason}.", "It should be a whole parquet file."
            ) from error
    return rows


SHUFFLE_SEED = 42  # nanochat's: its first problems are ours
SPELLING_PROBLEMS = 256  # nanochat's SpellingBee

Letter = Annotated[str, Field(pattern=r"^[A-Za-z0-9]$")]  # a byte, so one token in any vocabulary


class Row(BaseModel, ABC):
    """A row of a task's files; its other columns are not looked at."""

    @abstractmethod
    def problem(self) -> Problem:
        """What it asks."""


class ArcChoices(BaseModel):
    """The choices of a question of ARC, 3 to 5 of them, labelled by letters or by digits."""

    text: list[str]
    label: list[Letter] = Field(min_length=2)


class ArcRow(Row):
    """A row of allenai/ai2_arc."""

    question: str
    choices: ArcChoices
    answer: Letter = Field(alias="answerKey")

    @model_validator(mode="after")
    def _consistent(self) -> "ArcRow":
        if len(self.choices.text) != len(self.choices.label):
            raise ValueError("there is not one label for each choice")
        if self.answer not in self.choices.label:
            raise ValueError(f"the answer, {self.answer}, is none of the choices")
        return self

    def problem(self) -> Choice:
        """The choices keep their labels."""
        letters, choices = self.choices.label, self.choices.text
        prompt = multiple_choice(self.question, letters, choices)
        return Choice(asked(prompt), tuple(letters), self.answer)


class MmluRow(Row):
    """A row of cais/mmlu."""

    question: str
    choices: list[str] = Field(min_length=4, max_length=4)
    answer: Literal[0, 1, 2, 3]

    def problem(self) -> Choice:
        """The choices are A to D."""
        letters = tuple(string.ascii_uppercase[: len(self.choices)])
        prompt = multiple_choice(self.question, letters, self.choices)
        return Choice(asked(prompt), letters, letters[self.answer])


class Gsm8kRow(Row):
    """A row of openai/gsm8k."""

    question: str
    answer: str

    @model_validator(mode="after")
    def _has_a_number(self) -> "Gsm8kRow":
        if final_number(self.answer) is None:
            raise ValueError("the answer has no number after ####")
        return self

    def problem(self) -> Exercise:
        """The number after ``####`` counts."""
        number = final_number(self.answer)
        assert number is not None
        return Exercise(asked(self.question), gives_number(number))


class HumanEvalRow(Row):
    """A row of openai/openai_humaneval."""

    prompt: str
    test: str
    entry_point: str

    def problem(self) -> Exercise:
        """The program that is written is run."""
        return Exercise(asked(self.prompt), solves(self.prompt, self.test, self.entry_point))


FILES: dict[TaskName, tuple[str, type[Row]]] = {
    "arc-easy": ("allenai--ai2_arc/ARC-Easy/test", ArcRow),
    "arc-challenge": ("allenai--ai2_arc/ARC-Challenge/test", ArcRow),
    "mmlu": ("cais--mmlu/all/test", MmluRow),
    "gsm8k": ("openai--gsm8k/main/test", Gsm8kRow),
    "humaneval": ("openai--openai_humaneval/openai_humaneval/test", HumanEvalRow),
}
RUNS_CODE: TaskName = "humaneval"


def is_there(task: TaskName, task_data: Path) -> bool:
    """Whether a task can be had; spelling needs no files."""
    return task not in FILES or bool(files(task_data / FILES[task][0]))


def problems(task: TaskName, task_data: Path, most: int | None) -> list[Problem]:
    """A task's problems, in an order that is always the same; the first ``most`` of them.

    Raises:
        MlxchatError: its files are not there or damaged, or a row of them is not of its form.
    """
    if task not in FILES:
        count = SPELLING_PROBLEMS if most is None else min(most, SPELLING_PROBLEMS)
        return [_spelled(conversation) for conversation in spelling.held_out_conversations(count)]
    folder, form = task_data / FILES[task][0], FILES[task][1]
    rows = read_rows(folder)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))[:most].tolist()
    return [_parsed(form, rows[number], folder, number).problem() for number in order]


def _spelled(conversation: Conversation) -> Exercise:
    """How often a letter is in a word, without the answer."""
    *asked_before, _answer = conversation.messages
    expected = spelling.final_answer(conversation)
    return Exercise(Conversation(tuple(asked_before)), gives_number(expected))


def _parsed(form: type[Row], row: dict[str, Any], folder: Path, number: int) -> Row:
    try:
        return form.model_validate(row)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise DataError(
            f"Row {number + 1} of {folder}: {f'{where}: ' if where else ''}{fault['msg']}.",
            "The files must be those of the task's split.",
        ) from error
