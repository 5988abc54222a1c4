"""Evaluates a model in training on held-out questions."""

from collections.abc import Iterator

import numpy as np

from mlxchat.config.rl import RlConfig
from mlxchat.data.loader import Stopped
from mlxchat.engine.rollout import answer_keys
from mlxchat.evaluate.pass_at_k import pass_at_k
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Evaluating, Event, Judged
from mlxchat.train.answer_sampler import AnswerSampler
from mlxchat.train.evaluation import never
from mlxchat.train.loop import ShouldStop
from mlxchat.train.rl_documents import QuestionDocuments
from mlxchat.train.rollouts import EVALUATION_SEED
from mlxchat.train.world import World


class QuestionEvaluation:
    """Asks the first held-out questions several times each; every rank takes a share of them.

    Every evaluation samples with the same random keys, so two evaluations differ only by the model.

    Args:
        config: how many questions, and answers to each.
        documents: the questions.
        sampler: samples the answers.
        batch_size: how many answers are sampled at a time.
        world: the ranks.
        clock: stamps the events.
    """

    def __init__(
        self,
        config: RlConfig,
        documents: QuestionDocuments,
        sampler: AnswerSampler,
        batch_size: int,
        world: World,
        clock: Clock,
    ) -> None:
        self._config, self._sampler = config, sampler
        self._questions = documents.source.held_out[: config.eval_questions]
        self._at_once = max(1, batch_size // config.eval_samples)
        self._world, self._clock = world, clock

    def events(self, step: int, stop: ShouldStop = never) -> Iterator[Event]:
        """Evaluate after a step, yielding progress and, last, a `Judged` of all ranks."""
        config, world, began = self._config, self._world, self._clock.seconds()
        own = range(len(self._questions))[world.rank :: world.size]
        right = np.zeros(len(self._questions))
        reward = tokens = 0.0

        def watch(ended: int, rewarded: int) -> None:
            if stop():
                raise Stopped

        for first in range(0, len(own), self._at_once):
            yield Evaluating(self._clock(), step, first, len(own), "questions")
            indices = own[first : first + self._at_once]
            keys = [
                answer_keys(config.seed, EVALUATION_SEED, index, answers=config.eval_samples)
                for index in indices
            ]
            questions = [self._questions[index] for index in indices]
            answers = self._sampler.sample(questions, np.stack(keys), watch)
            right[list(indices)] = answers.right.sum(axis=1)
            reward, tokens = reward + float(answers.rewards.sum()), tokens + answers.tokens
        totals = world.all_gather([*right.tolist(), reward, tokens]).sum(axis=0).tolist()
        *counts, reward, tokens = totals
        samples, answered = config.eval_samples, config.eval_samples * len(counts)
        of_1, of_k = (
            pass_at_k(list(map(int, counts)), samples, k, [each.asked for each in self._questions])
            for k in (1, samples)
        )
        yield Judged(
            self._clock(),
            step,
            questions=len(counts),
            samples=samples,
            reward=reward / answered,
            pass_1=of_1.value,
            pass_1_low=of_1.low,
            pass_1_high=of_1.high,
            pass_k=of_k.value,
            pass_k_low=of_k.low,
            pass_k_high=of_k.high,
            length=tokens / answered,
            seconds=self._clock.seconds() - began,
        )
