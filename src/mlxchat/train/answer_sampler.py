"""Samples a model's answers to questions, many to each, and rewards them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from mlxchat.config.inference import Sampling
from mlxchat.data.questions.question import QuestionSource, TaskQuestion
from mlxchat.engine.policy import Policy
from mlxchat.engine.rollout import SampledAnswer, sample_answers
from mlxchat.engine.sampling import make_row_sampler
from mlxchat.engine.tools import ToolUse
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.streams import STREAMS, one_thread_each
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer
from mlxchat.train.rewards import CheckedReward

Watch = Callable[[int, int], None]
"""Gets the numbers of answers that have ended and that are rewarded; may raise to give up."""


@dataclass(frozen=True)
class ScoredAnswers:
    """The answers to Q questions, S to each, in order of the questions: Q * S of them.

    Attributes:
        prompts: token ids of the question of each answer.
        answers: their tokens.
        texts: their texts, with the names of special tokens.
        rewards: (Q, S).
        right: (Q, S), whether each gives the right answer, whatever its reward.
    """

    prompts: list[list[int]]
    answers: list[SampledAnswer]
    texts: list[str]
    rewards: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """Tokens in all answers."""
        return sum(len(answer.ids) for answer in self.answers)


class AnswerSampler:
    """Samples answers of the model in its current state, and rewards them.

    Args:
        model: the model, which may be in training.
        tokenizer: its tokenizer.
        source: provides the questions.
        reward: rewards answers.
        sampling: how answers are sampled.
        max_tokens: the length at which an answer is cut off.
        batch_size: how many answers are sampled at a time.
        streams: the streams of a training step; answers are sampled with the same threads.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        source: QuestionSource,
        reward: CheckedReward,
        sampling: Sampling,
        max_tokens: int,
        batch_size: int,
        streams: int = STREAMS,
    ) -> None:
        self._policy, self._tokenizer = Policy(model), tokenizer
        self._source, self._reward = source, reward
        self._sample_tokens = make_row_sampler(sampling, model.config.vocab_size)
        self._max_tokens, self._batch_size, self._streams = max_tokens, batch_size, streams
        self._stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})

    def sample(
        self,
        questions: Sequence[TaskQuestion],
        keys: npt.NDArray[np.uint32],
        watch: Watch = lambda ended, rewarded: None,
    ) -> ScoredAnswers:
        """Sample answers to questions, and reward them.

        Args:
            questions: Q of them, at least one.
            keys: (Q, S, 2), the key of each answer.
            watch: called while they are sampled, and before each is rewarded.

        Raises:
            ConfigError: a reward has failed too often.
        """
        samples, tokenizer = keys.shape[1], self._tokenizer
        rendered = [tokenizer.render_for_completion(q.conversation) for q in questions]
        prompts = [ids for ids in rendered for _ in range(samples)]
        # On two cores that are shared, products of two threads take many times as long.
        with one_thread_each(self._streams):
            answers = self._sampled(prompts, mx.array(keys.reshape(-1, 2)), watch)
        texts = [tokenizer.decode(answer.ids, keep_special=True) for answer in answers]
        asked = [question for question in questions for _ in range(samples)]
        rewards: list[float] = []
        right: list[bool] = []
        for question, text in zip(asked, texts, strict=True):
            watch(len(answers), len(rewards))
            rewards.append(self._reward.score(question.prompt, text, question.answer))
            right.append(self._source.is_right(question, text))
        shape = len(questions), samples
        return ScoredAnswers(
            prompts,
            answers,
            texts,
            np.array(rewards, np.float32).reshape(shape),
            np.array(right, np.bool_).reshape(shape),
        )

    def _sampled(
        self, prompts: list[list[int]], keys: mx.array, watch: Watch
    ) -> list[SampledAnswer]:
        model = self._policy.current()
        answers: list[SampledAnswer] = []
        for first in range(0, len(prompts), self._batch_size):
            part, done = slice(first, first + self._batch_size), len(answers)
            answers += sample_answers(
                model,
                prompts[part],
                self._sample_tokens,
                keys[part],
                stop=self._stop,
                max_tokens=self._max_tokens,
                tools=partial(ToolUse, self._tokenizer),
                watch=lambda ended, done=done: watch(done + ended, 0),  # type: ignore[misc]
            )
        return answers
