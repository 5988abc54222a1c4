"""From logits to tokens. Pure functions: the last axis is the vocabulary, any axes before it."""

import math

from mlxchat.config.inference import Sampling
from mlxchat.runtime import mx

COLDEST = 1e-6  # a lower temperature is greedy: dividing by it would overflow float32


def penalise(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Make tokens less likely where ``seen`` (booleans) is true.

    Positive logits are divided by the penalty and negative ones multiplied (CTRL,
    https://arxiv.org/abs/1909.05858, with the sign handled as Hugging Face does).
    """
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_p(logits: mx.array, p: float) -> mx.array:
    """-inf outside the smallest set of likeliest tokens whose probability reaches ``p``.

    Nucleus sampling, https://arxiv.org/abs/1904.09751.
    """
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.take_along_axis(mx.softmax(logits, axis=-1, precise=True), order, axis=-1)
    before = mx.cumsum(probabilities, axis=-1, inclusive=False)
    kept = mx.put_along_axis(mx.zeros_like(order), order, (before < p).astype(order.dtype), axis=-1)
    return mx.where(kept, logits, -math.inf)


def keep_min_p(logits: mx.array, p: float) -> mx.array:
    """-inf for tokens less likely than ``p`` > 0 times the likeliest (https://arxiv.org/abs/2407.01082)."""
    threshold = logits.max(axis=-1, keepdims=True) + math.log(p)
    return mx.where(logits < threshold, -math.inf, logits)


def sample(
    logits: mx.array, sampling: Sampling, key: mx.array, seen: mx.array | None = None
) -> mx.array:
    """Draw one token for every row: (..., V) float32 logits to (...) integers.

    ``seen``, booleans that broadcast to the logits, marks what the repetition penalty is for.
    """
    if seen is not None:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature < COLDEST:
        return mx.argmax(logits, axis=-1)
    logits = logits / sampling.temperature
    candidates = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        # The filters that follow sort k numbers in place of the whole vocabulary.
        candidates = mx.argpartition(-logits, sampling.top_k - 1, axis=-1)[..., : sampling.top_k]
        logits = mx.take_along_axis(logits, candidates, axis=-1)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    drawn = mx.random.categorical(logits, axis=-1, key=key)
    if candidates is None:
        return drawn
    return mx.take_along_axis(candidates, drawn[..., None], axis=-1)[..., 0]
