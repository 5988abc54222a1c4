"""Generates tokens one after another, computing the next while the caller uses the latest."""

from collections.abc import Callable, Generator, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mlxchat.engine.cache import BatchCache, KVCache, read_with
from mlxchat.engine.sampling import Sampler, apply_repetition_penalty, greedy
from mlxchat.model.gpt import GPT
from mlxchat.runtime import machine, mx

PREFILL_CHUNK = 2048  # prompt tokens in one pass; bounds the memory of attention

Tool = Callable[[int], int | None]
"""Called with each token of a continuation; returns the one that must follow, None where any may.

`mlxchat.engine.tools.ToolUse` is one.
"""


def generate(
    model: GPT,
    ids: Sequence[int],
    cache: KVCache,
    sample: Sampler = greedy,
    *,
    key: mx.array | None = None,
    stop: frozenset[int],
    max_tokens: int,
    repetition_penalty: float = 1.0,
    seen: Sequence[int] = (),
    tools: Callable[[], Tool] | None = None,
) -> Generator[int, None, None]:
    """Continue ``ids``, which follow what ``cache`` holds.

    However the generator ends (a stop token, ``max_tokens``, `close`, an exception such as Ctrl-C),
    the cache then holds what it held before, ``ids`` and the tokens yielded; after an exception
    while ``ids`` are read, only a beginning of them. ``cache.offset`` is the number of positions.
    A generator that is left early must be closed for this to hold (`contextlib.closing`). Where the
    device failed, the cache may hold arrays that were never computed and must not be used again.

    Args:
        model: the network; the caller makes sure that its context is long enough.
        ids: at least one token.
        cache: extended in place.
        sample: chooses tokens, such as `mlxchat.engine.sampling.make_sampler` makes one.
        key: a key from `mx.random.key`, of the draws; by default that of seed 0.
        stop: tokens that end the generation; they are not yielded, held or penalised.
        max_tokens: yield at most this many tokens.
        repetition_penalty: makes tokens less likely that occurred before; 1 for none.
        seen: tokens the cache held before ``ids``; they count for the repetition penalty.
        tools: returns a function that forces tokens. Those are yielded and held like others and
            count for ``max_tokens``; the token sampled in the place of a forced one has no effect.

    Raises:
        ValueError: ``ids`` is empty.
    """
    if not ids:
        raise ValueError("there is no token to continue")
    choose = _TokenSampler(model, sample, key, repetition_penalty, [{*seen, *ids} - stop])
    try:
        token = choose(prefill(model, ids, cache))  # (1,)
    except BaseException:
        cache.trim(cache.offset)  # some layers may have read more
        raise
    mx.async_eval(token)
    read, yielded, ahead = cache.offset, 0, launches_ahead()
    tool = tools() if tools else None
    try:
        while yielded < max_tokens:
            following = choose(next_logits(model, token, cache), token)
            if ahead:
                mx.async_eval(following)
            value = int(token)
            if value in stop:
                return
            mx.async_eval(following)  # does nothing if it is under way
            yielded += 1
            yield value
            token = _forced(following, [tool(value)]) if tool else following
    finally:
        cache.trim(read + yielded)  # without the stop token, or one that was not yielded


def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sample: Sampler = greedy,
    *,
    key: mx.array | None = None,
    stop: frozenset[int],
    max_tokens: int,
    repetition_penalty: float = 1.0,
    tools: Callable[[], Tool] | None = None,
) -> Iterator[list[int | None]]:
    """Continue several prompts together; equal prompts are read only once.

    Yields the next token of every prompt, None for those that have ended, until all have. Whenever
    half of those that are computed have ended, only the others are computed from then on.

    Args:
        model: the network; the caller makes sure that its context is long enough.
        prompts: token ids, at least one per prompt; the lengths may differ.
        sample: chooses tokens, such as `mlxchat.engine.sampling.make_sampler` makes one.
        key: of the draws: one key for all from `mx.random.key`, by default that of seed 0; or a
            key for each, (B, 2), if ``sample`` takes those (`make_row_sampler`).
        stop: tokens that end a continuation; they are not yielded or penalised.
        max_tokens: yield at most this many tokens for a prompt.
        repetition_penalty: as for `generate`.
        tools: as for `generate`; called once for each prompt.

    Raises:
        ValueError: a prompt is empty, or there is none.
    """
    if not prompts or not all(prompts):
        raise ValueError("there is no token to continue")
    batch, logits = _prefill_batch(model, prompts)
    choose = _TokenSampler(
        model, sample, key, repetition_penalty, [set(ids) - stop for ids in prompts]
    )
    tokens = choose(logits)  # (B,)
    del logits
    rows = [_Row(prompt, tools() if tools else None) for prompt in range(len(prompts))]
    ahead = launches_ahead()
    mx.async_eval(tokens)
    for _ in range(max_tokens):
        following = choose(next_logits(model, tokens, batch), tokens)
        if ahead:
            mx.async_eval(following)
        values: list[int] = np.array(tokens).tolist()
        for row, token in zip(rows, values, strict=True):
            row.ended |= token in stop
        if all(row.ended for row in rows):
            return
        mx.async_eval(following)  # does nothing if it is under way
        yielded: list[int | None] = [None] * len(prompts)
        for row, token in zip(rows, values, strict=True):
            if not row.ended:
                yielded[row.prompt] = token
        yield yielded
        forced = [
            row.tool(token) if row.tool and not row.ended else None
            for row, token in zip(rows, values, strict=True)
        ]
        tokens = _forced(following, forced)
        left = [number for number, row in enumerate(rows) if not row.ended]
        if 2 * len(left) <= len(rows):
            kept = mx.array(left)
            tokens, rows = tokens[kept], [rows[number] for number in left]
            batch.keep(kept)
            choose.keep(kept)


@dataclass
class _Row:
    """A row of a batch: the number of its prompt, its tool, and whether it has ended."""

    prompt: int
    tool: Tool | None
    ended: bool = False


def _prefill_batch(model: GPT, prompts: Sequence[Sequence[int]]) -> tuple[BatchCache, mx.array]:
    """Read each prompt once; returns the cache of them all, and the logits after each, (B, V)."""
    prefilled: dict[tuple[int, ...], tuple[KVCache, mx.array]] = {}
    for ids in map(tuple, prompts):
        if ids not in prefilled:
            alone = KVCache(model.config)
            prefilled[ids] = alone, prefill(model, ids, alone)
            mx.async_eval(prefilled[ids][1])
    rows = [prefilled[tuple(ids)] for ids in prompts]
    batch = BatchCache([alone for alone, _ in rows])  # has copies of what they hold
    return batch, mx.concatenate([logits for _, logits in rows])


def continue_greedily(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    stop: frozenset[int],
    max_tokens: int,
    tools: Callable[[], Tool] | None = None,
) -> list[list[int]]:
    """Return the likeliest continuation of each prompt, with the tokens that ``tools`` force.

    Each ends before a stop token or after ``max_tokens`` tokens.
    """
    steps = generate_batch(model, prompts, stop=stop, max_tokens=max_tokens, tools=tools)
    continuations: list[list[int]] = [[] for _ in prompts]
    for tokens in steps:
        for continuation, token in zip(continuations, tokens, strict=True):
            if token is not None:
                continuation.append(token)
    return continuations


def prefill(model: GPT, ids: Sequence[int], cache: KVCache, chunk: int = PREFILL_CHUNK) -> mx.array:
    """Read ``ids`` into ``cache``, ``chunk`` at a time; returns the next token's logits, (1, V)."""
    *earlier, last = (mx.array([ids[i : i + chunk]]) for i in range(0, len(ids), chunk))  # (1, T)
    for piece in earlier:
        mx.eval(model.features(piece, cache))  # before the next one: their attention is large
    return model.logits(model.features(last, cache)[:, -1])


def next_logits(model: GPT, tokens: mx.array, cache: KVCache | BatchCache) -> mx.array:
    """Read one token of each sequence, (B,), into ``cache``; returns the logits after it, (B, V).

    The model's compiled step does this, if it has one.
    """
    ids = tokens[:, None]
    if model.decode_step is None:
        return model(ids, cache)[:, -1]
    return read_with(model.decode_step, ids, cache)


def launches_ahead() -> bool:
    """Return whether to launch the computation of a token before the one before it is known.

    MLX writes in place only into buffers that nothing under way still reads, and copies them
    otherwise: all of the cache for each token that is launched ahead. Launching a token's kernels
    takes CUDA a millisecond, and the copy of a small model's cache a hundredth of that. Metal
    launches them in a fraction of that time and its memory is slower by a factor of 5 to 40: the
    copy would cost as much as is gained, and more for a long context. A CPU gains nothing.
    """
    return machine().backend == "cuda"


def _forced(sampled: mx.array, forced: Sequence[int | None]) -> mx.array:
    """Return ``sampled``, (B,), with the forced tokens, if not None, in their rows."""
    if all(token is None for token in forced):
        return sampled
    free = mx.array([token is None for token in forced])
    return mx.where(free, sampled, mx.array([token or 0 for token in forced], sampled.dtype))


class _SamplingState(NamedTuple):
    """The inputs, besides the logits, for choosing a token.

    Attributes:
        key: of the draws that follow, for all rows or one for each.
        seen: which tokens are penalised, (B, V); None without a repetition penalty.
    """

    key: mx.array
    seen: mx.array | None


class _TokenSampler:
    """Chooses one token after another, with a repetition penalty; keeps the tokens on the device.

    Args:
        seen: for each row the tokens that are penalised from the beginning.
    """

    def __init__(
        self,
        model: GPT,
        sample: Sampler,
        key: mx.array | None,
        penalty: float,
        seen: Sequence[Set[int]],
    ) -> None:
        penalised = None
        if penalty > 1:
            penalised = mx.zeros((len(seen), model.config.vocab_size), mx.bool_)
            for row, tokens in enumerate(seen):
                penalised[row, mx.array(sorted(tokens), mx.int32)] = True
        self._state = _SamplingState(mx.random.key(0) if key is None else key, penalised)
        self._sample = _sampling_function(sample, penalty, compiled=model.decode_step is not None)

    def __call__(self, logits: mx.array, latest: mx.array | None = None) -> mx.array:
        """Return the tokens, (B,), that follow (B, V) logits.

        Args:
            latest: the tokens before them, (B,), unless those are in ``seen`` already.
        """
        tokens, self._state = self._sample(logits, latest, self._state)
        return tokens

    def keep(self, rows: mx.array) -> None:
        """Forget all rows but these."""
        key, seen = self._state
        key = key[rows] if key.ndim > 1 else key
        self._state = _SamplingState(key, None if seen is None else seen[rows])


_SampleFunction = Callable[
    [mx.array, mx.array | None, _SamplingState], tuple[mx.array, _SamplingState]
]


@lru_cache(maxsize=16)  # a compiled function keeps its traces
def _sampling_function(sample: Sampler, penalty: float, compiled: bool) -> _SampleFunction:
    def choose(
        logits: mx.array, latest: mx.array | None, state: _SamplingState
    ) -> tuple[mx.array, _SamplingState]:
        seen = state.seen
        if seen is not None:
            if latest is not None:
                seen = seen | (mx.arange(seen.shape[-1]) == latest[:, None])
            logits = apply_repetition_penalty(logits, seen, penalty)
        tokens, key = sample(logits, state.key)
        return tokens, _SamplingState(key, seen)

    return mx.compile(choose) if compiled else choose
