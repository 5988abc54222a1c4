"""The evaluation of a model on held-out questions: its intervals know which ask the same."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from mlxchat.config.rl import RlConfig
from mlxchat.data.questions.choice import TaskChoice
from mlxchat.data.questions.question import TaskQuestion
from mlxchat.data.questions.tasks import generated_questions
from mlxchat.evaluate.pass_at_k import pass_at_k
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Judged
from mlxchat.train.answer_sampler import AnswerSampler, ScoredAnswers, Watch
from mlxchat.train.question_evaluation import QuestionEvaluation
from mlxchat.train.rl_documents import QuestionDocuments
from mlxchat.train.world import ALONE


class KnowsSomeSums:
    """Answers every other sum right, in whatever words it is asked."""

    def __init__(self, known: set[str]) -> None:
        self.known = known

    def sample(
        self, questions: Sequence[TaskQuestion], keys: npt.NDArray[np.uint32], watch: Watch
    ) -> ScoredAnswers:
        shape = len(questions), keys.shape[1]
        knows = [[question.asked in self.known] for question in questions]
        right = np.broadcast_to(np.array(knows), shape)
        return ScoredAnswers([], [], [], right.astype(np.float32), right)


def judged(level: int) -> tuple[Judged, list[TaskQuestion], set[str]]:
    source = generated_questions(TaskChoice("arithmetic", level), seed=1)
    known = set(sorted({question.asked for question in source.held_out})[::2])
    evaluation = QuestionEvaluation(
        RlConfig(task="arithmetic", level=level, eval_questions=400),
        QuestionDocuments(source, {}, seed=1),
        cast(AnswerSampler, KnowsSomeSums(known)),
        1024,
        ALONE,
        SYSTEM_CLOCK,
    )
    *_, last = evaluation.events(step=0)
    assert isinstance(last, Judged)
    return last, list(source.held_out), known


def test_a_few_sums_in_many_words_leave_the_doubt_of_a_few() -> None:
    found, questions, known = judged(level=1)
    right = [8 * (question.asked in known) for question in questions]
    apart = pass_at_k(right, 8, 1)
    assert found.questions == 400 and found.pass_1 == apart.value
    assert found.pass_1_high - found.pass_1_low > 3 * (apart.high - apart.low)
    assert found.pass_k_low <= found.pass_k <= found.pass_k_high


def test_sums_that_differ_have_the_interval_of_as_many() -> None:
    found, questions, known = judged(level=5)
    expected = pass_at_k([8 * (question.asked in known) for question in questions], 8, 1)
    assert (found.pass_1_low, found.pass_1_high) == (expected.low, expected.high)
