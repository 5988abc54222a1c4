"""The level to learn at, found with models that answer a known share of each level."""

from collections.abc import Callable, Sequence

import pytest

from mlxchat.data.questions.levels import FoundLevel, find_level
from mlxchat.data.questions.question import TaskQuestion
from mlxchat.data.questions.tasks import levels_of

Answers = Callable[[Sequence[TaskQuestion]], Sequence[Sequence[str]]]


def knowing(*shares: float) -> Answers:
    """A model that answers this share of the questions of each level, in the order asked."""
    left = iter(shares)

    def answer(questions: Sequence[TaskQuestion]) -> Sequence[Sequence[str]]:
        right = round(next(left) * len(questions))
        return [
            [question.reply.text if number < right else "?"] * 2
            for number, question in enumerate(questions)
        ]

    return answer


def found(*shares: float, name: str = "spelling") -> FoundLevel:
    return find_level(name, knowing(*shares), seed=1, questions=20)


def test_the_first_level_within_the_range_is_taken() -> None:
    level = found(1.0, 0.9, 0.5)
    assert (level.level, level.share, level.suits) == (3, 0.5, True)
    assert level.shares == {1: 1.0, 2: 0.9, 3: 0.5}
    assert found(0.6).level == found(0.2).level == 1
    assert found(0.9, 0.1, 0.3).level == 3
    assert found(0.0, 0.02, 0.0, 0.0, 0.4).level == 5  # of a model that was fine-tuned on it alone


@pytest.mark.parametrize(
    ("shares", "level"),
    [
        ((0.0, 0.0), 1),
        ((0.05, 0.1), 2),
        ((1.0,) * 7, 1),  # nothing is harder, and all teach nothing
        ((1.0, 0.95, 0.9, 0.9, 0.9, 0.9, 0.8), 7),
        ((0.9, 0.75, 0.05, 0.0), 2),
        ((0.95, 0.15, 0.05), 2),
        ((0.15, 0.9, 0.05), 1),
    ],
)
def test_without_one_within_it_answers_differ_the_most(
    shares: tuple[float, ...], level: int
) -> None:
    best = found(*shares, *[0.0] * (levels_of("spelling") - len(shares)))
    assert best.level == level and not best.suits
    assert len(best.shares) == levels_of("spelling")


def test_it_asks_questions_to_train_on_and_as_they_will_be_asked() -> None:
    asked: list[TaskQuestion] = []

    def answer(questions: Sequence[TaskQuestion]) -> Sequence[Sequence[str]]:
        asked.extend(questions)
        half = len(questions) // 2
        return [[q.reply.text] for q in questions[:half]] + [["?"]] * (len(questions) - half)

    best = find_level("arithmetic", answer, seed=4, calculator=True, questions=8)
    assert best.shares == {1: 0.5} and len(asked) == 8
    assert all(question.prompt.endswith("Use the calculator.") for question in asked)
