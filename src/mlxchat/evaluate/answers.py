"""Answers the problems of a task, and compares the score with that of guessing.

`answer_problems` answers multiple-choice questions by comparing logits (`choose_letters`) and all
others by decoding greedily (`write_answers`). Prompts of similar length are computed together,
padded on the right: padding changes nothing before it, because attention is causal.

Prompts and answers may be longer than the context, as in nanochat. The model was not trained to
read so far and answers worse there, but it sees the whole question.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.engine.generate import continue_greedily
from mlxchat.engine.tools import ToolUse
from mlxchat.evaluate.pass_at_k import Interval, effective_count, wilson
from mlxchat.evaluate.tasks import Choice, Exercise, Problem
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import ASSISTANT_END

MAX_BATCH_TOKENS = 8192  # padding included


@dataclass(frozen=True)
class Outcome:
    """The model's answer to a problem.

    Attributes:
        answer: the letter that the model chose, or the text that it wrote, with the names of its
            special tokens, as in nanochat.
    """

    problem: Problem
    answer: str
    right: bool


def answer_problems(
    saved: SavedModel, problems: Sequence[Problem], batch_size: int, max_tokens: int
) -> Iterator[Outcome]:
    """Yield the answers to a task's problems, in any order.

    Args:
        batch_size, max_tokens: as for `write_answers`.
    """
    yield from choose_letters(
        saved, [problem for problem in problems if isinstance(problem, Choice)]
    )
    exercises = [problem for problem in problems if isinstance(problem, Exercise)]
    yield from write_answers(saved, exercises, batch_size, max_tokens)


def choose_letters(saved: SavedModel, choices: Sequence[Choice]) -> Iterator[Outcome]:
    """Yield the likeliest letter of each question, in any order.

    As in nanochat, letters are compared by their logits at the last position of the prompt.
    """
    model, tokenizer = saved.model, saved.tokenizer
    prompts = [tokenizer.render_for_completion(choice.prompt) for choice in choices]
    for group in by_length([len(ids) for ids in prompts]):
        rows = [prompts[index] for index in group]
        x = model.features(mx.array(padded(rows, tokenizer.bos)))  # (B, T, C)
        last = mx.array([len(row) - 1 for row in rows])
        logits = np.array(model.logits(x[mx.arange(len(rows)), last]))  # (B, V)
        for index, of_row in zip(group, logits, strict=True):
            choice = choices[index]
            tokens = [tokenizer.encode(letter)[0] for letter in choice.letters]
            letter = choice.letters[int(of_row[tokens].argmax())]
            yield Outcome(choice, letter, letter == choice.answer)


def write_answers(
    saved: SavedModel, exercises: Sequence[Exercise], batch_size: int, max_tokens: int
) -> Iterator[Outcome]:
    """Yield an answer to each exercise, decoded greedily with the calculator, in any order.

    Args:
        batch_size: the number of answers decoded together.
        max_tokens: the most tokens in an answer.
    """
    tokenizer = saved.tokenizer
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    prompts = [tokenizer.render_for_completion(exercise.prompt) for exercise in exercises]
    for group in by_length([len(ids) for ids in prompts], batch_size):
        rows = [prompts[index] for index in group]
        answers = continue_greedily(saved.model, rows, stop, max_tokens, lambda: ToolUse(tokenizer))
        for index, tokens in zip(group, answers, strict=True):
            text, exercise = tokenizer.decode(tokens, keep_special=True), exercises[index]
            yield Outcome(exercise, text, exercise.is_right(text))


@dataclass(frozen=True)
class Score:
    """The score of a model on one task.

    Attributes:
        problems: the number of problems.
        right: how many of them were answered correctly.
        random: the fraction that guessing gets right: the mean of 1 / number of choices (nanochat
            uses 0.25 even for questions with 3 or 5 choices), and 0 for written answers.
        effective: how many different problems would tell as much, if some ask the same in other
            words; None if all differ.
    """

    task: str
    problems: int
    right: int
    random: float
    effective: float | None = None

    @classmethod
    def of(cls, task: str, outcomes: Sequence[Outcome]) -> "Score":
        """Return the score of at least one outcome."""
        asked = [each.problem.asked or number for number, each in enumerate(outcomes)]
        differ = len(set(asked)) == len(asked)
        return cls(
            task,
            problems=len(outcomes),
            right=sum(outcome.right for outcome in outcomes),
            random=sum(outcome.problem.random for outcome in outcomes) / len(outcomes),
            effective=None if differ else effective_count([each.right for each in outcomes], asked),
        )

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.problems

    @property
    def error(self) -> float:
        """The standard error of the share: half the width of Wilson's interval at one sigma.

        It is close to the binomial standard error, but not 0 when none or all answers are right
        (Wilson 1927, Probable inference, the law of succession, and statistical inference).
        """
        n, share = self.effective or self.problems, self.share
        return math.sqrt(share * (1 - share) / n + 1 / (4 * n**2)) / (1 + 1 / n)

    @property
    def interval(self) -> Interval:
        """The share with its 95% interval, Wilson's."""
        return wilson(self.share, self.effective or self.problems)

    @property
    def centered(self) -> float:
        """The share rescaled so that guessing is 0 and all right 1, as in nanochat's ChatCORE."""
        return self.rescaled(self.share)

    def rescaled(self, share: float) -> float:
        """Return a share as `centered` has it."""
        return (share - self.random) / (1 - self.random)

    def facts(self) -> dict[str, str | int | float]:
        """Return it with what follows from it, as plain values for JSON."""
        return {
            "task": self.task,
            "problems": self.problems,
            "right": self.right,
            "random": self.random,
            "score": self.share,
            "low": self.interval.low,
            "high": self.interval.high,
            "error": self.error,
            "centered": self.centered,
        }


def mean_centered(scores: Sequence[Score]) -> float:
    """Return the mean centered score; over nanochat's own tasks, this is its ChatCORE."""
    return sum(score.centered for score in scores) / len(scores)


def by_length(lengths: Sequence[int], rows: int | None = None) -> Iterator[list[int]]:
    """Yield the indices of all rows in groups to compute together, the shortest rows first.

    A group has at most `MAX_BATCH_TOKENS` tokens, padding included, or is a single row.

    Args:
        lengths: tokens in each row.
        rows: the most rows in a group; None for no limit.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        too_long = (len(group) + 1) * lengths[index] > MAX_BATCH_TOKENS
        if group and (too_long or len(group) == rows):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]], value: int) -> npt.NDArray[np.int32]:
    """Return the rows as an array, (B, T), with ``value`` after the shorter ones."""
    array = np.full((len(rows), max(map(len, rows))), value, np.int32)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array
