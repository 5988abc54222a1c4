"""What a model answers to a task's problems.

Rows of different lengths computed together: those of about one length, padded on the right.

What follows a row changes nothing in it, because attention looks back only.

How many problems of a task a model gets right, beside what guessing gets.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.engine.generate import continue_greedily
from mlxchat.engine.tools import ToolUse
from mlxchat.evaluate.tasks import Choice, Exercise, Problem
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import ASSISTANT_END

AT_ONCE = 8192  # tokens, padding included


def by_length(lengths: Sequence[int], rows: int | None = None) -> Iterator[list[int]]:
    """The indices of all rows, in groups of rows to compute together, short ones first.

    A group has `AT_ONCE` tokens at most, padding included, or is a single row.

    Args:
        lengths: of the rows, in tokens.
        rows: in a group at most.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        too_long = (len(group) + 1) * lengths[index] > AT_ONCE
        if group and (too_long or len(group) == rows):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]], value: int) -> npt.NDArray[np.int32]:
    """The rows one below the other, (B, T), with ``value`` after the shorter ones."""
    array = np.full((len(rows), max(map(len, rows))), value, np.int32)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array


FRAME = 2  # tokens that stay at the beginning of a prompt: <|bos|><|user_start|>


@dataclass(frozen=True)
class Outcome:
    """A problem, what the model answered, whether that is right.

    Attributes:
        cut: the prompt was too long for the context, and lost its beginning.
    """

    problem: Problem
    answer: str
    right: bool
    cut: bool


def answer(
    saved: SavedModel, problems: Sequence[Problem], batch_size: int, max_tokens: int
) -> Iterator[Outcome]:
    """Answer a task's problems, in any order; ``batch_size`` and ``max_tokens`` as for `write`."""
    yield from choose(saved, [problem for problem in problems if isinstance(problem, Choice)])
    exercises = [problem for problem in problems if isinstance(problem, Exercise)]
    yield from write(saved, exercises, batch_size, max_tokens)


def choose(saved: SavedModel, choices: Sequence[Choice]) -> Iterator[Outcome]:
    """Choose the likeliest of each question's letters, as nanochat does, in any order.

    They are compared by their logits at the last position of the prompt.
    """
    model, tokenizer = saved.model, saved.tokenizer
    whole = [tokenizer.render_for_completion(choice.prompt) for choice in choices]
    prompts = [fitted(ids, model.config.sequence_len) for ids in whole]
    for group in by_length([len(ids) for ids in prompts]):
        rows = [prompts[index] for index in group]
        x = model.features(mx.array(padded(rows, tokenizer.bos)))  # (B, T, C)
        last = mx.array([len(row) - 1 for row in rows])
        logits = np.array(model.logits(x[mx.arange(len(rows)), last]))  # (B, V)
        for index, of_row in zip(group, logits, strict=True):
            choice = choices[index]
            tokens = [tokenizer.encode(letter)[0] for letter in choice.letters]
            letter = choice.letters[int(of_row[tokens].argmax())]
            cut = len(prompts[index]) < len(whole[index])
            yield Outcome(choice, letter, letter == choice.answer, cut)


def write(
    saved: SavedModel, exercises: Sequence[Exercise], batch_size: int, max_tokens: int
) -> Iterator[Outcome]:
    """Write an answer to each exercise at temperature 0, with the calculator, in any order.

    An answer ends with the context; at least half of that, or ``max_tokens``, is left to it.

    Args:
        batch_size: answers written at a time.
        max_tokens: of an answer at most.
    """
    tokenizer, context = saved.tokenizer, saved.model.config.sequence_len
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    room = context - min(max_tokens, context // 2)
    whole = [tokenizer.render_for_completion(exercise.prompt) for exercise in exercises]
    prompts = [fitted(ids, room) for ids in whole]
    for group in by_length([len(ids) for ids in prompts], batch_size):
        rows = [prompts[index] for index in group]
        left = [min(max_tokens, context - len(row)) for row in rows]
        answers = continue_greedily(saved.model, rows, stop, max(left), lambda: ToolUse(tokenizer))
        for index, tokens, most in zip(group, answers, left, strict=True):
            text = tokenizer.decode(tokens[:most])
            exercise, cut = exercises[index], len(prompts[index]) < len(whole[index])
            yield Outcome(exercise, text, exercise.is_right(text), cut)


def fitted(ids: list[int], room: int) -> list[int]:
    """A prompt of at most ``room`` tokens: where it is longer, without the user's first words."""
    return ids if len(ids) <= room else [*ids[:FRAME], *ids[FRAME + len(ids) - room :]]


@dataclass(frozen=True)
class Score:
    """Of one task.

    Attributes:
        random: share that guessing gets right: one over the choices, averaged over the questions
            (nanochat takes 0.25 where a few have 3 or 5); 0 where answers are written.
        cut: prompts that lost their beginning.
    """

    task: str
    problems: int
    right: int
    random: float
    cut: int

    @classmethod
    def of(cls, task: str, outcomes: Sequence[Outcome]) -> "Score":
        """Count outcomes, of which there is one at least."""
        return cls(
            task,
            problems=len(outcomes),
            right=sum(outcome.right for outcome in outcomes),
            random=sum(outcome.problem.random for outcome in outcomes) / len(outcomes),
            cut=sum(outcome.cut for outcome in outcomes),
        )

    @property
    def share(self) -> float:
        """Of problems, that are right."""
        return self.right / self.problems

    @property
    def error(self) -> float:
        """Half the width of Wilson's interval for the share, at one standard error.

        About the binomial standard error, but not 0 where none or all are right (Wilson 1927,
        Probable inference, the law of succession, and statistical inference).
        """
        n, share = self.problems, self.share
        return math.sqrt(share * (1 - share) / n + 1 / (4 * n**2)) / (1 + 1 / n)

    @property
    def centered(self) -> float:
        """0 for guessing, 1 where all are right; as in nanochat's ChatCORE."""
        return (self.share - self.random) / (1 - self.random)


def mean_centered(scores: Sequence[Score]) -> float:
    """The mean over tasks; nanochat's ChatCORE, where they are its own."""
    return sum(score.centered for score in scores) / len(scores)
