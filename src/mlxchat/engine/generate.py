"""Tokens from a model, one after another, the next one under way while the caller has this one."""

from collections.abc import Generator, Iterable, Sequence

from mlxchat.engine.cache import Cache
from mlxchat.engine.options import Sampling
from mlxchat.engine.sampling import sample
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

PREFILL_CHUNK = 2048  # prompt tokens in one pass; bounds the memory of attention


def generate(
    model: GPT,
    ids: Sequence[int],
    cache: Cache,
    sampling: Sampling,
    key: mx.array,
    *,
    stop: frozenset[int],
    max_tokens: int,
    seen: Sequence[int] = (),
) -> Generator[int, None, None]:
    """Continue ``ids``, which follow what ``cache`` holds.

    However the generator ends (a stop token, ``max_tokens``, `close`, an exception such as Ctrl-C),
    the cache then holds what it held before, then ``ids`` and the tokens yielded, of which the tail
    may be missing, or everything after an exception. ``cache.offset`` says how many.
    A generator that is left early must be closed for this to hold (`contextlib.closing`).

    Args:
        model: the network; its context length is the caller's to respect.
        ids: at least one token.
        cache: extended in place.
        sampling: how tokens are chosen.
        key: of `mx.random.key`; the same key and inputs give the same tokens.
        stop: tokens that end the generation; they are not yielded, held or penalised.
        max_tokens: the most tokens to yield.
        seen: tokens the cache held before ``ids``; they count for the repetition penalty.

    Raises:
        ValueError: ``ids`` is empty.
    """
    if not ids:
        raise ValueError("there is no token to continue")
    start, yielded = cache.offset, 0
    draw = _Draw(sampling, key, model.config.vocab_size, {*seen, *ids} - stop)
    try:
        token = draw(prefill(model, ids, cache))  # (1,)
        mx.async_eval(token)
        while yielded < max_tokens:
            following = draw(model(token[None], cache)[:, -1])
            mx.async_eval(following)
            value = int(token)
            if value in stop:
                return
            yielded += 1
            yield value
            token = following
    finally:
        cache.trim(min(start + len(ids) + yielded, cache.offset))


def continue_greedily(
    model: GPT, ids: Sequence[int], stop: frozenset[int], max_tokens: int
) -> list[int]:
    """The likeliest tokens after ``ids``, by themselves: up to a stop token or ``max_tokens``."""
    sampling, key = Sampling(temperature=0), mx.random.key(0)
    cache = Cache(model.config)
    return list(generate(model, ids, cache, sampling, key, stop=stop, max_tokens=max_tokens))


def prefill(model: GPT, ids: Sequence[int], cache: Cache, chunk: int = PREFILL_CHUNK) -> mx.array:
    """Read ``ids`` into ``cache``, ``chunk`` at a time; logits of the next token, (1, V)."""
    *earlier, last = (mx.array([ids[i : i + chunk]]) for i in range(0, len(ids), chunk))  # (1, T)
    for piece in earlier:
        mx.eval(model.features(piece, cache))  # before the next one: their attention is large
    return model.logits(model.features(last, cache)[:, -1])


class _Draw:
    """Draws one token after another; its key and the tokens seen change on the device."""

    def __init__(
        self, sampling: Sampling, key: mx.array, vocab_size: int, seen: Iterable[int]
    ) -> None:
        self._sampling = sampling
        self._key = key
        self._seen: mx.array | None = None
        if sampling.repetition_penalty > 1:
            self._vocabulary = mx.arange(vocab_size)
            self._seen = mx.zeros(vocab_size, mx.bool_)
            self._seen[mx.array(sorted(seen), mx.int32)] = True

    def __call__(self, logits: mx.array) -> mx.array:
        """The token after (1, V) logits, (1,)."""
        self._key, key = mx.random.split(self._key)
        token = sample(logits, self._sampling, key, self._seen)
        if self._seen is not None:
            self._seen = self._seen | (self._vocabulary == token)
        return token
