"""Sampling, from logits to tokens: pure functions along the last axis.

`make_sampler` chains them according to the settings, for rows that share settings and a key.
`sample_rows` does so for rows with their own settings and keys, given as arrays; each row gets the
token that `make_sampler` would choose for that row alone.

The last axis of `greedy` and `apply_repetition_penalty` is the vocabulary. Filters (`keep_top_p`,
`keep_min_p`) come after the temperature and after top-k: they get the logits of all tokens, or only
of the k largest in any order, so a filter must not treat an index as a token. They return logits of
the same shape, with -inf for what they exclude.

To add a filter, write a function here, a field in `mlxchat.config.inference.Sampling`, and the
lines in `make_sampler` and `sample_rows` that join them.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, cast

from mlxchat.config.inference import Sampling
from mlxchat.runtime import mx

MIN_TEMPERATURE = 1e-6  # a lower temperature is greedy: dividing by it would overflow float32
MIN_TOP_P = 1e-37  # above 0 in float32, also where denormal numbers are 0

Sampler = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]
"""Chooses a token for every row: (..., V) float32 logits and a key from `mx.random.key`.

Returns (...) integers, and the key of the draws that follow.
"""


@lru_cache
def make_sampler(sampling: Sampling) -> Sampler:
    """Return the function that chooses tokens as ``sampling`` says, the same for equal settings.

    Every call draws with another key split off the given one, so that calls that begin with equal
    keys give the same tokens.

    The repetition penalty is not part of it, since that depends on earlier tokens: see
    `apply_repetition_penalty`.
    """
    if sampling.temperature < MIN_TEMPERATURE:
        return greedy
    filters: list[Callable[[mx.array], mx.array]] = []
    if sampling.top_p < 1:
        filters.append(partial(keep_top_p, p=sampling.top_p))
    if sampling.min_p > 0:
        filters.append(partial(keep_min_p, p=sampling.min_p))

    def sample(logits: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
        key, own = mx.random.split(key)
        logits, vocab_size = logits / sampling.temperature, logits.shape[-1]
        few = sampling.top_k is not None and sampling.top_k < vocab_size
        if few:  # the filters sort k numbers instead of the whole vocabulary
            logits, tokens = largest_logits(logits, cast(int, sampling.top_k))
        for keep in filters:
            logits = keep(logits)
        if not few:
            return mx.argmax(logits + mx.random.gumbel(logits.shape, key=own), axis=-1), key
        rows = mx.arange(logits.size // logits.shape[-1]).reshape(*logits.shape[:-1], 1)
        return sample_among(logits, tokens, tokens + rows * vocab_size, own), key

    return sample


def sample_among(logits: mx.array, tokens: mx.array, numbers: mx.array, keys: mx.array) -> mx.array:
    """Draw one of k tokens with these logits in each row; returns (...).

    The draw adds Gumbel noise (https://arxiv.org/abs/1411.0030, section 2) that depends only on the
    key and the number of a token, so that it is the same whatever other tokens there are.

    Args:
        logits: (..., k).
        tokens: (..., k).
        numbers: (..., k), what numbers the tokens for the noise.
        keys: one of `mx.random.key`, (2,), or one for each row, (..., 1, 2).
    """
    first = keys[..., 0] ^ numbers.astype(mx.uint32)
    second = mx.broadcast_to(keys[..., 1], first.shape)
    noise = _gumbel(mx.stack([first, second], axis=-1).reshape(-1, 2)).reshape(first.shape)
    place = mx.argmax(logits + noise, axis=-1, keepdims=True)
    return mx.take_along_axis(tokens, place, axis=-1)[..., 0]


_gumbel = mx.vmap(lambda key: mx.random.gumbel((), key=key))


def greedy(logits: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
    """Choose the likeliest token, the first of equally likely ones; returns the key unused."""
    return mx.argmax(logits, axis=-1), key


def largest_logits(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """Return the k largest logits in any order, and their tokens, (..., k) each."""
    tokens = mx.argpartition(-logits, k - 1, axis=-1)[..., :k]
    return mx.take_along_axis(logits, tokens, axis=-1), tokens


def keep_top_p(logits: mx.array, p: float | mx.array) -> mx.array:
    """Set logits to -inf outside the smallest set of tokens whose probability reaches ``p``.

    ``p`` is one number or (..., 1); infinity keeps all. The likeliest token is always kept, even if
    ``p`` is too small for float32, in which it is 0.

    Nucleus sampling, https://arxiv.org/abs/1904.09751.
    """
    order = mx.argsort(-logits, axis=-1)
    probabilities = mx.take_along_axis(mx.softmax(logits, axis=-1, precise=True), order, axis=-1)
    before = mx.cumsum(probabilities, axis=-1, inclusive=False)
    few = (before < mx.maximum(p, MIN_TOP_P)).astype(order.dtype)
    kept = mx.put_along_axis(mx.zeros_like(order), order, few, axis=-1)
    return mx.where(kept, logits, -math.inf)


def keep_min_p(logits: mx.array, p: float | mx.array) -> mx.array:
    """Set logits to -inf for tokens less likely than ``p`` times the likeliest.

    ``p`` is one number or (..., 1); 0 keeps all.

    Min-p sampling, https://arxiv.org/abs/2407.01082.
    """
    threshold = logits.max(axis=-1, keepdims=True) + mx.log(mx.array(p))
    return mx.where(logits < threshold, -math.inf, logits)


def apply_repetition_penalty(
    logits: mx.array, seen: mx.array, penalty: float | mx.array
) -> mx.array:
    """Make tokens less likely where ``seen``, booleans of the logits' shape, is true.

    ``penalty`` is one number or (..., 1). Positive logits are divided by it and negative ones
    multiplied (CTRL, https://arxiv.org/abs/1909.05858, with the sign handled as Hugging Face does).
    """
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


# ==== Rows with settings of their own ====

MIN_CANDIDATES = 64  # candidates of rows with a top_k; beyond, four times as many at a time


class RowSettings(NamedTuple):
    """The settings of B rows, (B, 1) each.

    Attributes:
        temperature: 1 for rows that take the likeliest token.
        greedy: whether the row does that.
        few: whether the row has a top_k.
        top_k: that number.
        top_p: infinity for all tokens.
        min_p: 0 for all tokens.
    """

    temperature: mx.array
    greedy: mx.array
    few: mx.array
    top_k: mx.array
    top_p: mx.array
    min_p: mx.array


class Needs(NamedTuple):
    """The parts of sampling that some row needs; each combination is traced once.

    Attributes:
        candidates: how many of the largest logits are considered for rows with a top_k; 0 if there
            are none.
        among_all: whether some rows sample from the whole vocabulary.
        sorted: whether the vocabulary must be sorted, for a top_p.
    """

    candidates: int
    among_all: bool
    sorted: bool


def row_settings(rows: Sequence[Sampling], vocab_size: int) -> tuple[RowSettings, Needs]:
    """Return the settings of rows as arrays, and what they need."""
    greedy = [row.temperature < MIN_TEMPERATURE for row in rows]
    top_k = [vocab_size if row.top_k is None else min(row.top_k, vocab_size) for row in rows]
    few = [k < vocab_size for k in top_k]
    drawn = [row for row, cold in zip(rows, greedy, strict=True) if not cold]
    most = max((k for k, cold in zip(top_k, greedy, strict=True) if not cold and k < vocab_size),
               default=0)  # fmt: skip
    candidates = MIN_CANDIDATES if most else 0
    while candidates < most:
        candidates *= 4
    all_of_them = [row for row in drawn if row.top_k is None or row.top_k >= vocab_size]
    needs = Needs(
        min(candidates, vocab_size), bool(all_of_them), any(row.top_p < 1 for row in all_of_them)
    )
    columns = (
        mx.array([1.0 if row.temperature < MIN_TEMPERATURE else row.temperature for row in rows]),
        mx.array(greedy),
        mx.array(few),
        mx.array(top_k, mx.int32),
        mx.array([row.top_p if row.top_p < 1 else math.inf for row in rows]),
        mx.array([row.min_p for row in rows]),
    )
    return RowSettings(*(column[:, None] for column in columns)), needs


def sample_rows(
    logits: mx.array, keys: mx.array, settings: RowSettings, needs: Needs
) -> tuple[mx.array, mx.array]:
    """Choose a token for every row by its own settings and key.

    Args:
        logits: (B, V) in float32.
        keys: (B, 2).
        settings, needs: of `row_settings`.

    Returns:
        The tokens, (B,), and the keys of the draws that follow, (B, 2).
    """
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    if not needs.candidates and not needs.among_all:
        return tokens, keys
    split = _split(keys)  # (B, 2, 2)
    following, own = split[:, 0], split[:, 1]
    logits, cold, few = logits / settings.temperature, settings.greedy[:, 0], settings.few[:, 0]
    if needs.candidates:
        tokens = mx.where(
            few & ~cold, _sample_top_k(logits, own, settings, needs.candidates), tokens
        )
    if needs.among_all:
        kept = keep_top_p(logits, settings.top_p) if needs.sorted else logits
        noise = mx.vmap(lambda key: mx.random.gumbel(logits.shape[1:], key=key))(own)  # (B, V)
        drawn = mx.argmax(keep_min_p(kept, settings.min_p) + noise, axis=-1).astype(mx.int32)
        tokens = mx.where(few | cold, tokens, drawn)
    return tokens, following


@lru_cache
def make_row_sampler(sampling: Sampling, vocab_size: int) -> Sampler:
    """Return a sampler that takes a key for each row, (B, 2), and settings that they share.

    What a row draws depends on its own key alone, whichever other rows there are.
    """
    settings, needs = row_settings([sampling], vocab_size)  # (1, 1) each

    def sample(logits: mx.array, keys: mx.array) -> tuple[mx.array, mx.array]:
        return sample_rows(logits, keys, settings, needs)

    return sample


_split = mx.vmap(mx.random.split)


def _sample_top_k(
    logits: mx.array, own: mx.array, settings: RowSettings, candidates: int
) -> mx.array:
    """Sample for each row from its ``top_k`` largest logits, which are among ``candidates``."""
    values, tokens = largest_logits(logits, candidates)
    order = mx.argsort(-values, axis=-1)
    values, tokens = (mx.take_along_axis(x, order, axis=-1) for x in (values, tokens))
    values = mx.where(mx.arange(candidates) < settings.top_k, values, -math.inf)
    values = keep_min_p(keep_top_p(values, settings.top_p), settings.min_p)
    return sample_among(values, tokens, tokens, own[:, None]).astype(mx.int32)
