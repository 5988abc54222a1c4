"""The batches of reinforcement learning: answers that the model has just sampled, with rewards.

A step's answers depend only on the weights before it, the run's seed and the step's number. Apart
from the position among the questions, nothing else is kept between steps, so a run that was killed
at any moment resumes as if nothing had happened.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mlxchat.config.rl import RlConfig
from mlxchat.data.documents import Cursor
from mlxchat.data.loader import Batch, LoaderState, Stopped
from mlxchat.data.questions.question import TaskQuestion
from mlxchat.engine.rollout import answer_keys
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Drawing, Event, Noted, Report, Rewarded
from mlxchat.tokenizer.bpe import ASSISTANT_END
from mlxchat.train.collapse import CollapseWatch
from mlxchat.train.examiner import Examined, Examiner
from mlxchat.train.loop import ShouldStop
from mlxchat.train.policy_gradient import advantages, all_equal, laid_out_rows, row_weights
from mlxchat.train.resume import TrainState
from mlxchat.train.rewards import CheckedReward
from mlxchat.train.rl_documents import QuestionDocuments
from mlxchat.train.world import World

ENTROPY_EVERY = 8  # answers, of which one tells the entropy
WIDTHS = 16  # of rows: each is traced once
TOLD_EVERY = 0.25  # seconds between two events of progress

OF_STEPS, OF_EVALUATIONS = 0, 1  # in the seeds of answers


class LearntRows(NamedTuple):
    """The rows that a rank trains on in a step: those with a gradient, the longest last.

    Attributes:
        ids, targets: (R, T).
        weights: (R,), the weights of the rows' losses.
        lengths: (R,), the columns that each row needs.
    """

    ids: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]


class AnswerSums(NamedTuple):
    """Sums over a rank's answers in a step; `Rewarded` has their means."""

    questions: float
    answers: float
    reward: float
    right: float
    all_right: float
    all_wrong: float
    all_equal: float
    tokens: float
    cut_off: float
    nats: float
    counted: float
    learned: float


class Rollouts:
    """The `mlxchat.train.batches.Batches` of a run: ``accumulation`` of them for each step.

    Micro-batches with nothing left to learn have no rows.

    Args:
        config: the run's settings.
        documents: the questions.
        state: the run, at the first step for which batches are wanted.
        examiner: asks the model.
        reward: the rewards, whose notes are reported.
        world: the ranks; each asks its own of the step's questions.
        report: called with the progress of sampling.
        clock: stamps the events.
        stop: polled while answers are sampled.
    """

    def __init__(
        self,
        config: RlConfig,
        documents: QuestionDocuments,
        state: TrainState,
        examiner: Examiner,
        reward: CheckedReward,
        world: World,
        report: Report,
        clock: Clock,
        stop: ShouldStop,
    ) -> None:
        self._config, self._documents, self._state = config, documents, state
        self._examiner, self._reward, self._world = examiner, reward, world
        self._report, self._clock, self._stop = report, clock, stop
        self._step, self._cursor = state.step, state.loader.cursor
        self._ready: deque[Batch] = deque()
        self._news: list[Event] = []
        self._collapse = CollapseWatch("learning_rate" if config.lora else "init_lr_frac")

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            self._ready.extend(self._of_next_step())
        return self._ready.popleft()

    def __enter__(self) -> "Rollouts":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def news(self) -> Sequence[Event]:
        """Return what there is to tell of the answers since it was last asked."""
        news, self._news = self._news, []
        return news

    def _of_next_step(self) -> list[Batch]:
        """Draw the answers of the next step; where that is given up, the step is still the next."""
        config, world, began = self._config, self._world, self._clock.seconds()
        number = self._step + 1
        questions, cursor = self._documents.following(self._cursor, config.examples)
        own = world.rows(config.examples)
        keys = np.stack(
            [
                answer_keys(config.seed, OF_STEPS, number, index, answers=config.samples)
                for index in range(config.examples)[own]
            ]
        )
        asked = self._asked(number, questions[own], keys)
        seconds = self._clock.seconds() - began
        step = _learnt(asked, config, self._padding, self._averaged(asked))
        self._tell(number, asked, step, seconds)
        self._step, self._cursor = number, cursor
        return self._divided(step, cursor)

    def _asked(
        self, number: int, questions: list[TaskQuestion], keys: npt.NDArray[np.uint32]
    ) -> Examined:
        total, told = keys.shape[0] * keys.shape[1], -TOLD_EVERY

        def watch(ended: int, rewarded: int) -> None:
            nonlocal told
            if self._stop():
                raise Stopped
            now = self._clock.seconds()
            if now - told >= TOLD_EVERY:
                told = now
                self._report(Drawing(self._clock(), number, ended, total, rewarded))

        return self._examiner.ask(questions, keys, watch)

    @property
    def _padding(self) -> int:
        return self._state.tokenizer.special(ASSISTANT_END)

    def _averaged(self, asked: Examined) -> int:
        """Return over how many questions of all ranks the loss of the step is averaged."""
        if not self._config.skip_equal:
            return self._config.examples
        different = float((~all_equal(asked.rewards)).sum())
        return max(1, int(self._world.gather([different]).sum()))

    def _divided(self, step: LearntRows, cursor: Cursor) -> list[Batch]:
        """Return a rank's micro-batches, each of the same number of rows or of none."""
        plan = self._state.plan.of_each(self._world.size)
        size, state = plan.device_batch_size, LoaderState(cursor)
        unit = max(8, -(-self._state.plan.row_tokens // WIDTHS))
        batches = []
        for first in range(0, plan.rows_per_step, size):
            part = slice(first, first + size)
            rows = len(step.ids[part])
            if not rows and first:
                none = step.ids[:0]
                batches.append(Batch(none, none, state, step.weights[:0]))
                continue
            needed = int(step.lengths[part].max(initial=1))
            width = min(-(-needed // unit) * unit, self._state.plan.row_tokens)
            columns = min(width, step.ids.shape[1])
            ids = np.full((size, width), self._padding, np.int32)
            targets = np.full((size, width), -1, np.int32)
            weights = np.zeros(size, np.float32)
            ids[:rows, :columns] = step.ids[part, :columns]
            targets[:rows, :columns] = step.targets[part, :columns]
            weights[:rows] = step.weights[part]
            batches.append(Batch(ids, targets, state, weights))
        return batches

    def _tell(self, number: int, asked: Examined, step: LearntRows, seconds: float) -> None:
        """Note what is to be told of the answers of all ranks."""
        plan, right = self._state.plan, asked.right
        assert plan.drawing is not None
        model, together = self._state.model, plan.device_batch_size
        nats, counted = _entropy(model, asked, self._padding, together)
        cut_off = sum(len(answer.ids) >= plan.drawing.max_tokens for answer in asked.answers)
        sums = AnswerSums(
            questions=len(right),
            answers=right.size,
            reward=float(asked.rewards.sum()),
            right=float(right.sum()),
            all_right=float(right.all(axis=1).sum()),
            all_wrong=float((~right.any(axis=1)).sum()),
            all_equal=float(all_equal(asked.rewards).sum()),
            tokens=asked.tokens,
            cut_off=cut_off,
            nats=nats,
            counted=counted,
            learned=float(step.lengths.sum()),
        )
        of_ranks = self._world.gather([*sums, seconds])
        total = AnswerSums(*of_ranks[:, :-1].sum(axis=0).tolist())
        event = Rewarded(
            self._clock(),
            number,
            reward=total.reward / total.answers,
            right=total.right / total.answers,
            all_right=total.all_right / total.questions,
            all_wrong=total.all_wrong / total.questions,
            length=total.tokens / total.answers,
            cut_off=total.cut_off / total.answers,
            entropy=total.nats / max(1.0, total.counted),
            tokens=int(total.tokens),
            learned=int(total.learned),
            seconds=float(of_ranks[:, -1].max()),
            all_equal=total.all_equal / total.questions,
        )
        said = [*self._reward.notes(), *self._collapse.notes(event)]
        self._news += [event, *(Noted(self._clock(), text) for text in said)]


def _learnt(asked: Examined, config: RlConfig, padding: int, averaged: int) -> LearntRows:
    """Lay out the answers that have a gradient."""
    ids, targets = laid_out_rows(asked.prompts, asked.answers, padding)
    drawn = (targets >= 0).sum(axis=1)
    gains = advantages(asked.rewards, config.advantage)
    weights = row_weights(gains, drawn.reshape(gains.shape), config.samples_per_pass, averaged)
    pairs = zip(asked.prompts, asked.answers, strict=True)
    lengths = np.array([len(prompt) + len(answer.ids) - 1 for prompt, answer in pairs])
    learnt = np.flatnonzero((weights != 0) & (drawn > 0))
    order = learnt[np.argsort(lengths[learnt], kind="stable")]
    return LearntRows(ids[order], targets[order], weights[order], lengths[order])


def _entropy(model: GPT, asked: Examined, padding: int, together: int) -> tuple[float, int]:
    """Return the sum of negative log probabilities of drawn tokens, and how many there are.

    Their mean is an estimate of the entropy of what the model draws from, at temperature 1 and
    before the rarest tokens are excluded. Some of the answers are enough for it.
    """
    prompts, answers = asked.prompts[::ENTROPY_EVERY], asked.answers[::ENTROPY_EVERY]
    total, counted = 0.0, 0
    for first in range(0, len(prompts), together):
        part = slice(first, first + together)
        ids, targets = laid_out_rows(prompts[part], answers[part], padding)
        losses = model.losses(mx.array(ids), mx.array(targets))
        total, counted = total + float(np.array(losses).sum()), counted + int((targets >= 0).sum())
    return total, counted
