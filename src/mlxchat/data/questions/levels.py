"""The level of a task that a model can learn at: where it gets some answers right, but not most.

A group of answers that are all right, or all wrong, teaches nothing. Most is learned where 20 to
60% are right; published runs gained nothing below 10%.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlxchat.data.questions.choice import TaskChoice
from mlxchat.data.questions.question import TaskQuestion
from mlxchat.data.questions.tasks import generated_questions, levels_of

FEWEST_RIGHT, MOST_RIGHT = 0.2, 0.6  # the shares of right answers between which to learn
QUESTIONS_A_LEVEL = 64


@dataclass(frozen=True)
class FoundLevel:
    """The level to learn at.

    Attributes:
        level: the level.
        shares: the share of right answers at each level that was tried.
    """

    level: int
    shares: Mapping[int, float]

    @property
    def share(self) -> float:
        """The share of right answers at the level."""
        return self.shares[self.level]

    @property
    def suits(self) -> bool:
        """Whether the share is between `FEWEST_RIGHT` and `MOST_RIGHT`."""
        return FEWEST_RIGHT <= self.share <= MOST_RIGHT


def find_level(
    name: str,
    answer: Callable[[Sequence[TaskQuestion]], Sequence[Sequence[str]]],
    *,
    seed: int,
    calculator: bool = False,
    questions: int = QUESTIONS_A_LEVEL,
) -> FoundLevel:
    """Return the level of a generated task at which to train a model.

    Levels are tried from the easiest on, until the share of right answers is within the range: a
    model that was fine-tuned on one level may know that one alone. If none is within it, the best
    is the one whose groups of answers differ the most: where the variance ``share * (1 - share)``
    of right and wrong is greatest.

    Args:
        name: the task.
        answer: returns the completions that the model drew for each question, the same number for
            each. The questions are ones to train on, so that nothing is chosen by those held out.
        seed: of the questions.
        calculator: ask arithmetic so that the calculator answers it.
        questions: how many are asked at each level.
    """
    shares: dict[int, float] = {}
    for level in range(1, levels_of(name) + 1):
        source = generated_questions(TaskChoice(name, level, calculator), seed)
        asked = source.train[:questions]
        right = [
            source.is_right(question, completion)
            for question, completions in zip(asked, answer(asked), strict=True)
            for completion in completions
        ]
        shares[level] = sum(right) / len(right)
        found = FoundLevel(level, shares)
        if found.suits:
            return found
    return FoundLevel(max(shares, key=lambda tried: shares[tried] * (1 - shares[tried])), shares)
