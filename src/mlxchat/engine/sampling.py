"""From logits to tokens: pure functions along the last axis.

`make_sampler` chains them as the settings say. The last axis of `greedy` and `penalise` is the
vocabulary. Filters (`keep_top_p`, `keep_min_p`) come after the temperature and after top-k: they
get the logits of all tokens, or of only the k largest in any order, so that a filter must not take
an index for a token. They return logits of the same shape, with -inf for what they exclude.

To add a filter, write a function here, a field in `mlxchat.config.inference.Sampling`, and the line
in `make_sampler` that joins them.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

from mlxchat.config.inference import Sampling
from mlxchat.runtime import mx

COLDEST = 1e-6  # a lower temperature is greedy: dividing by it would overflow float32

Sampler = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]
"""Chooses a token for every row: (..., V) float32 logits and a key from `mx.random.key`.

Returns (...) integers, and the key of the draws that follow.
"""


@lru_cache
def make_sampler(sampling: Sampling) -> Sampler:
    """Return the function that chooses tokens as ``sampling`` says, the same for equal settings.

    Every call draws with another key split off the given one, so that calls that begin with equal
    keys give the same tokens.

    The repetition penalty is not part of it, since that depends on earlier tokens: see `penalise`.
    """
    if sampling.temperature < COLDEST:
        return greedy
    filters: list[Callable[[mx.array], mx.array]] = []
    if sampling.top_p < 1:
        filters.append(partial(keep_top_p, p=sampling.top_p))
    if sampling.min_p > 0:
        filters.append(partial(keep_min_p, p=sampling.min_p))

    def sample(logits: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
        key, own = mx.random.split(key)
        logits = logits / sampling.temperature
        if sampling.top_k is None or sampling.top_k >= logits.shape[-1]:
            return _draw(logits, filters, own), key
        # The filters sort k numbers instead of the whole vocabulary.
        logits, tokens = largest(logits, sampling.top_k)
        place = _draw(logits, filters, own)
        return mx.take_along_axis(tokens, place[..., None], axis=-1)[..., 0], key

    return sample


def _draw(
    logits: mx.array, filters: list[Callable[[mx.array], mx.array]], key: mx.array
) -> mx.array:
    for keep in filters:
        logits = keep(logits)
    return mx.random.categorical(logits, axis=-1, key=key)


def greedy(logits: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
    """Choose the likeliest token, the first of equally likely ones; returns the key unused."""
    return mx.argmax(logits, axis=-1), key


def largest(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Return the k largest logits in any order, and their tokens, (..., k) each."""
    tokens = mx.argpartition(-logits, k - 1, axis=-1)[..., :k]
    return mx.take_along_axis(logits, tokens, axis=-1), tokens


def keep_top_p(logits: mx.array, p: float) -> mx.array:
    """Set logits to -inf outside the smallest set of tokens whose probability reaches ``p``.

    Nucleus sampling, https://arxiv.org/abs/1904.09751.
    """
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.take_along_axis(mx.softmax(logits, axis=-1, precise=True), order, axis=-1)
    before = mx.cumsum(probabilities, axis=-1, inclusive=False)
    kept = mx.put_along_axis(mx.zeros_like(order), order, (before < p).astype(order.dtype), axis=-1)
    return mx.where(kept, logits, -math.inf)


def keep_min_p(logits: mx.array, p: float) -> mx.array:
    """Set logits to -inf for tokens less likely than ``p`` > 0 times the likeliest.

    Min-p sampling, https://arxiv.org/abs/2407.01082.
    """
    threshold = logits.max(axis=-1, keepdims=True) + math.log(p)
    return mx.where(logits < threshold, -math.inf, logits)


def penalise(logits: mx.array, seen: mx.array, penalty: float) -> mx.array:
    """Make tokens less likely where ``seen``, booleans of the logits' shape, is true.

    Positive logits are divided by the penalty and negative ones multiplied (CTRL,
    https://arxiv.org/abs/1909.05858, with the sign handled as Hugging Face does).
    """
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)
