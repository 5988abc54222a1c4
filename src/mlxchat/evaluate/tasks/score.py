"""How many problems of a task a model gets right, beside what guessing gets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlxchat.evaluate.tasks.answers import Outcome


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
