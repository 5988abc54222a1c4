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
from mlxchat.train.answer_sampler import AnswerSampler, ScoredAnswers
from mlxchat.train.collapse import CollapseWatch
from mlxchat.train.loop import ShouldStop
from mlxchat.train.policy_gradient import advantages, all_equal, padded_rows, row_weights
from mlxchat.train.resume import TrainState
from mlxchat.train.rewards import CheckedReward
from mlxchat.train.rl_documents import QuestionDocuments
from mlxchat.train.world import World

ENTROPY_EVERY = 8  # answers, of which one tells the entropy
WIDTHS = 16  # of rows: each is traced once
PROGRESS_INTERVAL = 0.25  # seconds between two events of progress

STEP_SEED, EVALUATION_SEED = 0, 1  # keep the keys of steps and evaluations apart


class TrainingRows(NamedTuple):
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
        sampler: samples the answers.
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
        sampler: AnswerSampler,
        reward: CheckedReward,
        world: World,
        report: Report,
        clock: Clock,
        stop: ShouldStop,
    ) -> None:
        self._config, self._documents, self._state = config, documents, state
        self._sampler, self._reward, self._world = sampler, reward, world
        self._report, self._clock, self._stop = report, clock, stop
        self._step, self._cursor = state.step, state.loader.cursor
        self._ready: deque[Batch] = deque()
        self._events: list[Event] = []
        self._collapse = CollapseWatch("learning_rate" if config.lora else "init_lr_frac")

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            self._ready.extend(self._next_step())
        return self._ready.popleft()

    def __enter__(self) -> "Rollouts":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take_events(self) -> Sequence[Event]:
        """Return the events about the answers since the last call."""
        events, self._events = self._events, []
        return events

    def _next_step(self) -> list[Batch]:
        """Sample the answers of the next step; if that is stopped, the same step comes next."""
        config, world, began = self._config, self._world, self._clock.seconds()
        number = self._step + 1
        questions, cursor = self._documents.following(self._cursor, config.examples)
        own = world.rows(config.examples)
        keys = np.stack(
            [
                answer_keys(config.seed, STEP_SEED, number, index, answers=config.samples)
                for index in range(config.examples)[own]
            ]
        )
        answers = self._sampled(number, questions[own], keys)
        seconds = self._clock.seconds() - began
        rows = _training_rows(answers, config, self._padding, self._questions_in_loss(answers))
        self._record(number, answers, rows, seconds)
        self._step, self._cursor = number, cursor
        return self._micro_batches(rows, cursor)

    def _sampled(
        self, number: int, questions: list[TaskQuestion], keys: npt.NDArray[np.uint32]
    ) -> ScoredAnswers:
        total, reported = keys.shape[0] * keys.shape[1], -PROGRESS_INTERVAL

        def watch(ended: int, rewarded: int) -> None:
            nonlocal reported
            if self._stop():
                raise Stopped
            now = self._clock.seconds()
            if now - reported >= PROGRESS_INTERVAL:
                reported = now
                self._report(Drawing(self._clock(), number, ended, total, rewarded))

        return self._sampler.sample(questions, keys, watch)

    @property
    def _padding(self) -> int:
        return self._state.tokenizer.special(ASSISTANT_END)

    def _questions_in_loss(self, answers: ScoredAnswers) -> int:
        """Return over how many questions of all ranks the loss of the step is averaged."""
        if not self._config.skip_equal:
            return self._config.examples
        different = float((~all_equal(answers.rewards)).sum())
        return max(1, int(self._world.all_gather([different]).sum()))

    def _micro_batches(self, rows: TrainingRows, cursor: Cursor) -> list[Batch]:
        """Return a rank's micro-batches, each of the same number of rows or of none."""
        plan = self._state.plan.per_rank(self._world.size)
        size, state = plan.device_batch_size, LoaderState(cursor)
        unit = max(8, -(-self._state.plan.row_tokens // WIDTHS))
        batches = []
        for first in range(0, plan.rows_per_step, size):
            part = slice(first, first + size)
            count = len(rows.ids[part])
            if not count and first:
                none = rows.ids[:0]
                batches.append(Batch(none, none, state, rows.weights[:0]))
                continue
            needed = int(rows.lengths[part].max(initial=1))
            width = min(-(-needed // unit) * unit, self._state.plan.row_tokens)
            columns = min(width, rows.ids.shape[1])
            ids = np.full((size, width), self._padding, np.int32)
            targets = np.full((size, width), -1, np.int32)
            weights = np.zeros(size, np.float32)
            ids[:count, :columns] = rows.ids[part, :columns]
            targets[:count, :columns] = rows.targets[part, :columns]
            weights[:count] = rows.weights[part]
            batches.append(Batch(ids, targets, state, weights))
        return batches

    def _record(
        self, number: int, answers: ScoredAnswers, rows: TrainingRows, seconds: float
    ) -> None:
        """Record the events about the answers of all ranks."""
        plan, right = self._state.plan, answers.right
        assert plan.drawing is not None
        model, batch_size = self._state.model, plan.device_batch_size
        nats, counted = _entropy(model, answers, self._padding, batch_size)
        cut_off = sum(len(answer.ids) >= plan.drawing.max_tokens for answer in answers.answers)
        sums = AnswerSums(
            questions=len(right),
            answers=right.size,
            reward=float(answers.rewards.sum()),
            right=float(right.sum()),
            all_right=float(right.all(axis=1).sum()),
            all_wrong=float((~right.any(axis=1)).sum()),
            all_equal=float(all_equal(answers.rewards).sum()),
            tokens=answers.tokens,
            cut_off=cut_off,
            nats=nats,
            counted=counted,
            learned=float(rows.lengths.sum()),
        )
        of_ranks = self._world.all_gather([*sums, seconds])
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
        notes = [*self._reward.notes(), *self._collapse.notes(event)]
        self._events += [event, *(Noted(self._clock(), text) for text in notes)]


def _training_rows(
    answers: ScoredAnswers, config: RlConfig, padding: int, questions_in_loss: int
) -> TrainingRows:
    """Return the rows of the answers that have a gradient."""
    ids, targets = padded_rows(answers.prompts, answers.answers, padding)
    sampled = (targets >= 0).sum(axis=1)
    gains = advantages(answers.rewards, config.advantage)
    weights = row_weights(
        gains, sampled.reshape(gains.shape), config.samples_per_pass, questions_in_loss
    )
    pairs = zip(answers.prompts, answers.answers, strict=True)
    lengths = np.array([len(prompt) + len(answer.ids) - 1 for prompt, answer in pairs])
    trained = np.flatnonzero((weights != 0) & (sampled > 0))
    order = trained[np.argsort(lengths[trained], kind="stable")]
    return TrainingRows(ids[order], targets[order], weights[order], lengths[order])


def _entropy(model: GPT, scored: ScoredAnswers, padding: int, batch_size: int) -> tuple[float, int]:
    """Return the sum of negative log probabilities of sampled tokens, and how many there are.

    Their mean is an estimate of the entropy of the model's distribution, at temperature 1 and
    before the rarest tokens are excluded. Some of the answers are enough for it.
    """
    prompts, answers = scored.prompts[::ENTROPY_EVERY], scored.answers[::ENTROPY_EVERY]
    total, counted = 0.0, 0
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        ids, targets = padded_rows(prompts[part], answers[part], padding)
        losses = model.losses(mx.array(ids), mx.array(targets))
        total, counted = total + float(np.array(losses).sum()), counted + int((targets >= 0).sum())
    return total, counted
