"""The loss of rewarded answers: nanochat's simple form of GRPO.

An answer's advantage is its reward minus the mean reward of all answers to its question. The loss
of a pass, a part of those answers, is the mean over its tokens of their negative log probabilities
times the advantages; a step's loss is the mean over the passes of all its questions. There is no
clipping, no reference model and no second update from the same answers (nanochat's
scripts/chat_rl.py at commit 92d63d4; DeepSeekMath, https://arxiv.org/abs/2402.03300, for the
original; https://arxiv.org/abs/2503.20783 on what dividing by the deviation does).

This module only computes with numbers; it knows neither models nor text.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlxchat.engine.rollout import SampledAnswer

DEVIATION = 1e-4  # added to the deviation by which advantages are divided

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int32]


class PaddedRows(NamedTuple):
    """Answers with their prompts as training rows, one each, padded to one length.

    Attributes:
        ids: (R, T), prompt and answer without its last token, then padding.
        targets: (R, T), each the next token where the model sampled it; -1 elsewhere.
    """

    ids: _Ids
    targets: _Ids


def advantages(rewards: _Floats, kind: Literal["mean", "std"] = "mean") -> _Floats:
    """Return by how much each answer was better than the others to its question.

    Args:
        rewards: (questions, answers to each).
        kind: ``std`` divides by the standard deviation of the question's rewards.
    """
    centered: _Floats = rewards - rewards.mean(axis=1, keepdims=True)
    # Rounding must not make a difference of answers that are all as good as each other.
    centered[all_equal(rewards)] = 0
    if kind == "std":
        centered /= rewards.std(axis=1, keepdims=True) + DEVIATION
    return centered


def all_equal(rewards: _Floats) -> npt.NDArray[np.bool_]:
    """Return of which questions all answers got the same reward, (questions,)."""
    same: npt.NDArray[np.bool_] = (rewards == rewards[:, :1]).all(axis=1)
    return same


def padded_rows(
    prompts: Sequence[Sequence[int]], answers: Sequence[SampledAnswer], padding: int
) -> PaddedRows:
    """Make training rows of answers with their prompts, each of at least one token.

    Args:
        prompts, answers: as many of both.
        padding: the id that fills up the rows.
    """
    longest = max(len(p) + len(a.ids) for p, a in zip(prompts, answers, strict=True))
    ids = np.full((len(answers), longest), padding, np.int32)
    sampled = np.zeros(ids.shape, np.bool_)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        begin, end = len(prompt), len(prompt) + len(answer.ids)
        ids[row, :begin], ids[row, begin:end] = prompt, answer.ids
        sampled[row, begin:end] = ~np.array(answer.forced, np.bool_)
    return PaddedRows(ids[:, :-1], np.where(sampled, ids, -1)[:, 1:])


def row_weights(
    advantages: _Floats, sampled: npt.NDArray[np.int64], per_pass: int, questions: int
) -> _Floats:
    """Return the weight of each answer's summed losses in the loss of a step, (answers,).

    Args:
        advantages: (questions, samples), of some or all questions of the step.
        sampled: (questions, samples), how many tokens the model sampled of each answer.
        per_pass: the answers of a pass; it divides the samples of a question.
        questions: over which the step's loss is averaged, at least 1.
    """
    samples = advantages.shape[1]
    tokens = np.maximum(sampled.reshape(-1, per_pass).sum(axis=1, keepdims=True), 1)  # of passes
    passes = questions * (samples // per_pass)
    return np.asarray(advantages.reshape(-1, per_pass) / (tokens * passes), np.float32).reshape(-1)
