"""Tokens from a model, one after another, the next one under way while the caller has this one."""

from collections.abc import Callable, Generator, Iterator, Sequence, Set

import numpy as np

from mlxchat.config.inference import Sampling
from mlxchat.engine.cache import Batch, Cache
from mlxchat.engine.sampling import sample
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

PREFILL_CHUNK = 2048  # prompt tokens in one pass; bounds the memory of attention

Tool = Callable[[int], int | None]
"""Called with each token of a continuation; returns the one that must follow, None where any may.

`mlxchat.engine.tools.ToolUse` is one.
"""


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
    tools: Callable[[], Tool] | None = None,
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
        tools: makes what forces tokens. Those are yielded and held like others, and count for
            ``max_tokens``; the token that was sampled in the place of one counts for nothing.

    Raises:
        ValueError: ``ids`` is empty.
    """
    if not ids:
        raise ValueError("there is no token to continue")
    draw = _Draw(sampling, key, model.config.vocab_size, [{*seen, *ids} - stop])
    try:
        token = draw(prefill(model, ids, cache))  # (1,)
    except BaseException:
        cache.trim(cache.offset)  # some layers may have read more
        raise
    mx.async_eval(token)
    batch, yielded = Batch([cache], model.config.windows), list[int]()
    tool = tools() if tools else None
    try:
        while len(yielded) < max_tokens:
            following = draw(model(token[:, None], batch)[:, -1], token)
            mx.async_eval(following)
            value = int(token)
            if value in stop:
                return
            yielded.append(value)
            yield value
            token = _forced(following, [tool(value)]) if tool else following
    finally:
        if yielded:
            cache.append(mx.array([yielded]), batch.since(0, len(yielded)))


def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    key: mx.array,
    *,
    stop: frozenset[int],
    max_tokens: int,
    tools: Callable[[], Tool] | None = None,
) -> Iterator[list[int | None]]:
    """Continue several prompts together; prompts that are equal are read once.

    Yields the next token of every prompt, None for those that have ended, until all have.

    Args:
        model: the network; its context length is the caller's to respect.
        prompts: of any lengths, each of at least one token.
        sampling: how tokens are chosen.
        key: of `mx.random.key`; the same key and inputs give the same tokens.
        stop: tokens that end a continuation; they are not yielded or penalised.
        max_tokens: the most tokens to yield for a prompt.
        tools: makes what forces tokens, for each prompt one; as for `generate`.

    Raises:
        ValueError: a prompt is empty, or there is none.
    """
    if not prompts or not all(prompts):
        raise ValueError("there is no token to continue")
    read: dict[tuple[int, ...], tuple[Cache, mx.array]] = {}
    for ids in map(tuple, prompts):
        if ids not in read:
            alone = Cache(model.config)
            read[ids] = alone, prefill(model, ids, alone)
            mx.async_eval(read[ids][1])
    rows = [read[tuple(ids)] for ids in prompts]
    batch = Batch([alone for alone, _ in rows], model.config.windows)
    draw = _Draw(sampling, key, model.config.vocab_size, [set(ids) - stop for ids in prompts])
    tokens = draw(mx.concatenate([logits for _, logits in rows]))  # (B,)
    going_on = [True] * len(prompts)
    tool_of_row = [tools() for _ in prompts] if tools else []
    del read, rows, alone  # what they hold has been joined
    mx.async_eval(tokens)
    for _ in range(max_tokens):
        following = draw(model(tokens[:, None], batch)[:, -1], tokens)
        mx.async_eval(following)
        values: list[int] = np.array(tokens).tolist()
        going_on = [on and token not in stop for on, token in zip(going_on, values, strict=True)]
        if not any(going_on):
            return
        yielded = [token if on else None for on, token in zip(going_on, values, strict=True)]
        yield yielded
        tokens = following
        if tools:
            calls = zip(tool_of_row, yielded, strict=True)
            forced = [None if token is None else tool(token) for tool, token in calls]
            tokens = _forced(following, forced)


def continue_greedily(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    stop: frozenset[int],
    max_tokens: int,
    tools: Callable[[], Tool] | None = None,
) -> list[list[int]]:
    """The likeliest tokens after each prompt, and those that ``tools`` force: up to a stop token or
    ``max_tokens``.
    """
    sampling, key = Sampling(temperature=0), mx.random.key(0)
    steps = generate_batch(
        model, prompts, sampling, key, stop=stop, max_tokens=max_tokens, tools=tools
    )
    continuations: list[list[int]] = [[] for _ in prompts]
    for tokens in steps:
        for continuation, token in zip(continuations, tokens, strict=True):
            if token is not None:
                continuation.append(token)
    return continuations


def prefill(model: GPT, ids: Sequence[int], cache: Cache, chunk: int = PREFILL_CHUNK) -> mx.array:
    """Read ``ids`` into ``cache``, ``chunk`` at a time; logits of the next token, (1, V)."""
    *earlier, last = (mx.array([ids[i : i + chunk]]) for i in range(0, len(ids), chunk))  # (1, T)
    for piece in earlier:
        mx.eval(model.features(piece, cache))  # before the next one: their attention is large
    return model.logits(model.features(last, cache)[:, -1])


def _forced(sampled: mx.array, forced: Sequence[int | None]) -> mx.array:
    """``sampled``, (B,), with the tokens that are forced in their rows."""
    if all(token is None for token in forced):
        return sampled
    free = mx.array([token is None for token in forced])
    return mx.where(free, sampled, mx.array([token or 0 for token in forced], sampled.dtype))


class _Draw:
    """Draws one token after another; its key and the tokens seen change on the device.

    Args:
        seen: tokens of each row that count for the repetition penalty.
    """

    def __init__(
        self, sampling: Sampling, key: mx.array, vocab_size: int, seen: Sequence[Set[int]]
    ) -> None:
        self._sampling = sampling
        self._key = key
        self._seen: mx.array | None = None  # (B, V)
        if sampling.repetition_penalty > 1:
            self._vocabulary = mx.arange(vocab_size)
            self._seen = mx.zeros((len(seen), vocab_size), mx.bool_)
            for row, tokens in enumerate(seen):
                self._seen[row, mx.array(sorted(tokens), mx.int32)] = True

    def __call__(self, logits: mx.array, latest: mx.array | None = None) -> mx.array:
        """The tokens after (B, V) logits, (B,); ``latest`` are those before, if not of the prompt,
        (B,).
        """
        self._key, key = mx.random.split(self._key)
        if self._seen is not None and latest is not None:
            self._seen = self._seen | (self._vocabulary == latest[:, None])
        return sample(logits, self._sampling, key, self._seen)
