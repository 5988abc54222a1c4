"""Answers for reinforcement learning: many per question, marking tokens that a tool forced.

Every answer has its own random key. It depends only on that key and the model, not on the other
answers in the batch (except for rounding, see `mlxchat.engine.continuous`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlxchat.engine.generate import Tool, generate_batch
from mlxchat.engine.sampling import Sampler
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx


@dataclass
class SampledAnswer:
    """An answer, without its final stop token.

    Attributes:
        ids: its tokens.
        forced: for each token, whether a tool forced it.
    """

    ids: list[int] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)


def sample_answers(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sample: Sampler,
    keys: mx.array,
    *,
    stop: frozenset[int],
    max_tokens: int,
    tools: Callable[[], Tool] | None = None,
    watch: Callable[[int], None] = lambda ended: None,
) -> list[SampledAnswer]:
    """Sample an answer to each prompt; equal prompts are read once.

    Args:
        model: samples them.
        prompts: token ids of the prompts.
        sample: chooses tokens with a key for each row, see `make_row_sampler`.
        keys: those keys, (B, 2).
        stop: tokens that end an answer.
        max_tokens: the length at which an answer is cut off.
        tools: makes the tool of an answer, as for `generate_batch`.
        watch: called between two tokens with the number of answers that have ended; what it raises
            ends the sampling.
    """
    answers = [SampledAnswer() for _ in prompts]
    recorders = (_Recorder(answer, tools() if tools else None) for answer in answers)
    steps = generate_batch(
        model,
        prompts,
        sample,
        key=keys,
        stop=stop,
        max_tokens=max_tokens,
        tools=lambda: next(recorders),
    )
    for tokens in steps:
        watch(tokens.count(None))
    return answers


class _Recorder:
    """Wraps one answer's tool, if any, and records each token and whether it was forced."""

    def __init__(self, answer: SampledAnswer, tool: Tool | None) -> None:
        self._answer, self._tool, self._forced = answer, tool, False

    def __call__(self, token: int) -> int | None:
        self._answer.ids.append(token)
        self._answer.forced.append(self._forced)
        following = self._tool(token) if self._tool else None
        self._forced = following is not None
        return following


def answer_keys(*numbers: int, answers: int) -> npt.NDArray[np.uint32]:
    """Return the keys of the answers to one question, (answers, 2), from numbers that name it."""
    seeds = [np.random.SeedSequence([*numbers, answer]) for answer in range(answers)]
    return np.stack([seed.generate_state(2) for seed in seeds])
