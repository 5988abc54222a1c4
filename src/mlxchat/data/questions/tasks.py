"""The tasks by name: generated ones, GSM8K, and files of questions and answers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from mlxchat.data.questions.arithmetic import ARITHMETIC_LEVELS, arithmetic_question
from mlxchat.data.questions.choice import GENERATED, GSM8K, TaskChoice
from mlxchat.data.questions.files import file_questions, gsm8k_questions
from mlxchat.data.questions.letters import (
    COUNTING_LEVELS,
    SPELLING_LEVELS,
    counting_question,
    spelling_question,
)
from mlxchat.data.questions.question import AnswerCheck, LazySequence, QuestionSource, TaskQuestion
from mlxchat.errors import ConfigError, NotFound
from mlxchat.home import expanded
from mlxchat.tokenizer.messages import Conversation

GSM8K_SOURCE = "https://huggingface.co/datasets/openai/gsm8k; MIT"  # and its licence
TRAIN_QUESTIONS = 8_192  # of a generated task, in an epoch
MOST_HELD_OUT = 400  # of a generated task, at most; nanochat measures as many
_FRUITLESS = 1_000  # draws in a row without a new question, after which there are no more


class _Task(NamedTuple):
    """A generated task.

    Attributes:
        levels: how many levels of difficulty there are.
        check: how answers are checked.
        make: returns a question by a random generator, its level, which counts from 1, whether it
            is held out, and whether the calculator answers it.
    """

    levels: int
    check: AnswerCheck
    make: Callable[[Random, int, bool, bool], TaskQuestion]


_TASKS = {
    "arithmetic": _Task(
        len(ARITHMETIC_LEVELS),
        "number",
        lambda rng, level, held_out, calculator: arithmetic_question(
            rng, ARITHMETIC_LEVELS[level - 1], held_out, calculator
        ),
    ),
    "spelling": _Task(
        len(SPELLING_LEVELS),
        "exact",
        lambda rng, level, held_out, _: spelling_question(
            rng, SPELLING_LEVELS[level - 1], held_out
        ),
    ),
    "counting": _Task(
        len(COUNTING_LEVELS),
        "number",
        lambda rng, level, held_out, _: counting_question(
            rng, COUNTING_LEVELS[level - 1], held_out
        ),
    ),
}


def questions_of(
    task: str,
    *,
    level: int | None = None,
    calculator: bool = False,
    seed: int,
    task_data: Path,
) -> QuestionSource:
    """Return the questions of a task.

    Args:
        task: the name of a generated task, gsm8k, or a file of questions and answers.
        level: the difficulty of a generated task; None for all levels in turns.
        calculator: ask arithmetic so that the calculator answers it.
        seed: of generated questions, and of the order of those of files.
        task_data: the folder of GSM8K's files.

    Raises:
        MlxchatError: there is no such task, level or file, or the file cannot be used.
    """
    if task in GENERATED:
        return generated_questions(TaskChoice(task, level, calculator), seed)
    if level is not None or calculator:
        raise ConfigError(
            f"The task {task} has neither levels nor a variant with the calculator.",
            f"Leave both out, or choose a generated task: {', '.join(GENERATED)}.",
        )
    if task == GSM8K:
        return gsm8k_questions(task_data, seed)
    path = expanded(task)
    if not path.exists():
        raise NotFound(
            f"There is no task {task!r}, and no file of that name.",
            f"Give {', '.join(GENERATED)}, {GSM8K}, or a .jsonl file with a question and an answer "
            "in each row.",
        )
    return file_questions(path, seed)


def levels_of(task: str) -> int:
    """Return how many levels of difficulty a generated task has."""
    return _TASKS[task].levels


def generated_questions(choice: TaskChoice, seed: int) -> QuestionSource:
    """Return the questions of a generated task.

    The held-out ones do not depend on the seed, so that models of several seeds are measured on the
    same questions.

    Raises:
        ConfigError: there is no such level.
    """
    task = _TASKS[choice.name]
    if choice.level is not None and not 1 <= choice.level <= task.levels:
        raise ConfigError(
            f"There is no level {choice.level} of {choice.name}.",
            f"Its levels are 1 to {task.levels}.",
        )
    levels = [choice.level] if choice.level else list(range(1, task.levels + 1))

    def train(index: int) -> TaskQuestion:
        rng = Random(f"{choice.name}/{seed}/{choice.level}/{index}")
        return task.make(rng, levels[index % len(levels)], False, choice.calculator)

    return QuestionSource(
        str(choice),
        LazySequence(TRAIN_QUESTIONS, train),
        _distinct(choice, levels),
        task.check,
    )


def solved_conversations(choice: TaskChoice, seed: int) -> Iterator[Conversation]:
    """Yield the questions of a generated task to train on, each with its reply, to learn from."""
    for question in generated_questions(choice, seed).train:
        yield question.solved


def _distinct(choice: TaskChoice, levels: list[int]) -> list[TaskQuestion]:
    """Return held-out questions, no two in the same words."""
    task = _TASKS[choice.name]
    rng = Random(f"{choice.name}/held out/{choice.level}")
    found: dict[str, TaskQuestion] = {}
    fruitless = 0
    while len(found) < MOST_HELD_OUT and fruitless < _FRUITLESS:
        level = levels[len(found) % len(levels)]
        question = task.make(rng, level, True, choice.calculator)
        fruitless = fruitless + 1 if question.prompt in found else 0
        found.setdefault(question.prompt, question)
    return list(found.values())
