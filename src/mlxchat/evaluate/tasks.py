"""The evaluation tasks: where their files are, what a row asks, and when an answer is right.

A task that reinforcement learning trains on (`mlxchat.data.questions`) is evaluated on its held-out
questions. Any other task is one row of `TASKS`. To add one, write a `TaskRow` for its files and put
its name into `mlxchat.config.inference.TaskName`. A folder of task data is laid out as on Hugging
Face: ``<organisation>--<name>/<config>/<split>/*.parquet``.

Prompts and rules are nanochat's (commit 92d63d4, tasks/), so that its models see the prompts they
were trained on and scores can be compared.
"""

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from mlxchat.data.chats import spelling
from mlxchat.data.chats.forms import multiple_choice
from mlxchat.data.files import Wanted
from mlxchat.data.parquet import parquet_rows
from mlxchat.data.questions.choice import TaskChoice
from mlxchat.data.questions.files import parquet_files, split_files
from mlxchat.data.questions.question import final_number
from mlxchat.data.questions.tasks import generated_questions
from mlxchat.data.text_files import Reading, failures_named
from mlxchat.errors import DataError
from mlxchat.evaluate.execution import runs_through
from mlxchat.tokenizer.messages import Conversation, Message

SHUFFLE_SEED = 42  # nanochat's, so that the first problems are the same ones
SPELLING_PROBLEMS = 256  # as in nanochat's SpellingBee
_FENCED = re.compile(r"```(?:python)?[ \t\r]*\n(.*?)\n```", re.DOTALL)


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question.

    Attributes:
        prompt: the conversation, which ends with the user's question.
        letters: the letters of the choices.
        answer: the letter of the right choice.
    """

    prompt: Conversation
    letters: tuple[str, ...]
    answer: str

    asked: ClassVar[str] = ""  # no two are known to ask the same

    @property
    def random(self) -> float:
        """The share of such questions that guessing gets right."""
        return 1 / len(self.letters)


@dataclass(frozen=True)
class Exercise:
    """A question that the model answers in writing.

    Attributes:
        prompt: the conversation, which ends with the user's question.
        is_right: judges an answer.
        asked: identifies what is asked, if others of the task ask the same in other words; empty if
            none is known to.
    """

    prompt: Conversation
    is_right: Callable[[str], bool]
    asked: str = ""

    @property
    def random(self) -> float:
        """The share of such questions that guessing gets right: 0."""
        return 0.0


Problem = Choice | Exercise


def user_prompt(text: str) -> Conversation:
    """Return a conversation that consists of one message by the user."""
    return Conversation((Message("user", text),))


def program(prompt: str, answer: str, test: str, entry_point: str) -> str:
    """Return the program that judges an answer to a HumanEval prompt.

    It consists of the imports at the top of the prompt, the first fenced code block of the answer
    (or all of the answer if it has none), and the task's test.
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
    """Return a judge that compares the `final_number` of an answer."""
    return lambda answer: final_number(answer) == expected


def solves(prompt: str, test: str, entry_point: str) -> Callable[[str], bool]:
    """Return a judge that runs the answer; see `mlxchat.evaluate.execution`."""
    return lambda answer: runs_through(program(prompt, answer, test, entry_point))


def read_rows(folder: Path, form: type["TaskRow"]) -> list[dict[str, Any]]:
    """Return all rows of a split, file by file, each as a dictionary by column.

    Only the columns of the form are read.

    Raises:
        NotFound: the folder has no parquet file.
        DataError: a file is damaged, or repeats itself too often.
    """
    fields = form.model_fields.items()
    wanted = Wanted([field.alias or name for name, field in fields], "problems")
    rows: list[dict[str, Any]] = []
    for path in split_files(folder):
        try:
            with failures_named(path):
                rows += (row.values for row in parquet_rows(Reading(path, settable=False), wanted))
        except DataError as error:
            raise DataError(error.problem, "Replace it with an intact parquet file.") from error
    return rows


Letter = Annotated[str, Field(pattern=r"^[A-Za-z0-9]$")]  # a byte, so one token in any vocabulary


class TaskRow(BaseModel, ABC):
    """A row of a task's files; columns that are not fields are ignored."""

    @abstractmethod
    def problem(self) -> Problem:
        """Return the problem that the row poses."""


class ArcChoices(BaseModel):
    """The 3 to 5 choices of an ARC question, labelled with letters or digits."""

    text: list[str]
    label: list[Letter] = Field(min_length=2)


class ArcRow(TaskRow):
    """A row of allenai/ai2_arc."""

    question: str
    choices: ArcChoices
    answer: Letter = Field(alias="answerKey")

    @model_validator(mode="after")
    def _consistent(self) -> "ArcRow":
        if len(self.choices.text) != len(self.choices.label):
            raise ValueError("the numbers of choices and labels differ")
        if self.answer not in self.choices.label:
            raise ValueError(f"the answer, {self.answer}, is not one of the choices")
        return self

    def problem(self) -> Choice:
        """Return the question; choices keep their labels."""
        letters, choices = self.choices.label, self.choices.text
        prompt = multiple_choice(self.question, letters, choices)
        return Choice(user_prompt(prompt), tuple(letters), self.answer)


class MmluRow(TaskRow):
    """A row of cais/mmlu."""

    question: str
    choices: list[str] = Field(min_length=4, max_length=4)
    answer: Literal[0, 1, 2, 3]

    def problem(self) -> Choice:
        """Return the question; choices are lettered A to D."""
        letters = tuple(string.ascii_uppercase[: len(self.choices)])
        prompt = multiple_choice(self.question, letters, self.choices)
        return Choice(user_prompt(prompt), letters, letters[self.answer])


class Gsm8kRow(TaskRow):
    """A row of openai/gsm8k."""

    question: str
    answer: str

    @model_validator(mode="after")
    def _has_a_number(self) -> "Gsm8kRow":
        if final_number(self.answer) is None:
            raise ValueError("the answer has no number after ####")
        return self

    def problem(self) -> Exercise:
        """Return the question, judged by the number after ``####``."""
        number = final_number(self.answer)
        assert number is not None
        return Exercise(user_prompt(self.question), gives_number(number))


class HumanEvalRow(TaskRow):
    """A row of openai/openai_humaneval."""

    prompt: str
    test: str
    entry_point: str

    def problem(self) -> Exercise:
        """Return the question, judged by running the program that the model writes."""
        return Exercise(user_prompt(self.prompt), solves(self.prompt, self.test, self.entry_point))


@dataclass(frozen=True)
class Task:
    """An evaluation task.

    Attributes:
        folder: where its files are in the folder of task data; None for the spelling task, whose
            problems are generated.
        row: the form of a row of its files.
        runs_code: whether judging an answer runs a program that the model wrote.
    """

    folder: str | None = None
    row: type[TaskRow] | None = None
    runs_code: bool = False


TASKS: dict[str, Task] = {
    "arc-easy": Task("allenai--ai2_arc/ARC-Easy/test", ArcRow),
    "arc-challenge": Task("allenai--ai2_arc/ARC-Challenge/test", ArcRow),
    "mmlu": Task("cais--mmlu/all/test", MmluRow),
    "gsm8k": Task("openai--gsm8k/main/test", Gsm8kRow),
    "humaneval": Task("openai--openai_humaneval/openai_humaneval/test", HumanEvalRow, True),
    "spelling": Task(),
}


def is_available(name: str, task_data: Path) -> bool:
    """Return whether the files of a task are there, or it needs none."""
    folder = TASKS[name].folder
    return folder is None or bool(parquet_files(task_data / folder))


def problems(name: str, task_data: Path, limit: int | None) -> list[Problem]:
    """Return the first ``limit`` problems of a task, or all, in a fixed order.

    Args:
        name: a name of `TASKS`, or a generated task such as arithmetic-4, whose held-out questions
            are the problems.
        task_data: the folder of task data.
        limit: the most problems; None for all.

    Raises:
        MlxchatError: its files are missing or damaged, a row has another form, or there is no such
            level.
    """
    choice = None if name in TASKS else TaskChoice.parse(name)
    if choice:
        return [*_held_out_problems(choice)[:limit]]
    task = TASKS[name]
    if task.folder is None or task.row is None:
        count = SPELLING_PROBLEMS if limit is None else min(limit, SPELLING_PROBLEMS)
        return [
            _spelling_problem(conversation)
            for conversation in spelling.held_out_conversations(count)
        ]
    folder = task_data / task.folder
    rows = read_rows(folder, task.row)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))[:limit].tolist()
    return [_parsed(task.row, rows[number], folder, number).problem() for number in order]


def _held_out_problems(choice: TaskChoice) -> list[Exercise]:
    source = generated_questions(choice, seed=0)  # which changes only the others
    return [
        Exercise(question.conversation, partial(source.is_right, question), question.asked)
        for question in source.held_out
    ]


def _spelling_problem(conversation: Conversation) -> Exercise:
    """Return the question of a spelling conversation: how often a letter is in a word."""
    *asked_before, reply = conversation.messages  # which is the same for the same word and letter
    expected = spelling.final_answer(conversation)
    return Exercise(Conversation(tuple(asked_before)), gives_number(expected), reply.text)


def _parsed(form: type[TaskRow], row: dict[str, Any], folder: Path, number: int) -> TaskRow:
    try:
        return form.model_validate(row)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise DataError(
            f"Row {number + 1} of {folder}: {f'{where}: ' if where else ''}{fault['msg']}.",
            "Use the original files of the task's split.",
        ) from error
