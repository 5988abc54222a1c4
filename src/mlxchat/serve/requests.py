"""A request to the scheduler, and what it delivers in return."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from mlxchat.config.inference import Sampling
from mlxchat.engine.generate import Tool
from mlxchat.errors import MlxchatError
from mlxchat.model.config import GPTConfig


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        ids: the prompt, at least one token.
        max_tokens: at least 1; prompt and continuation together are within the context.
        sampling: how tokens are chosen, the repetition penalty included.
        seed: of the random draws.
        stop: tokens that end the continuation; they are not delivered.
        presence_penalty, frequency_penalty: OpenAI's, over the tokens generated.
        logit_bias: added to the logits of these tokens.
        logprobs: deliver each token's log probability and this many of the most likely
            alternatives, at most 20; None for neither.
        tools: called once, on the model's thread; returns a tool that can force tokens.
        adapter: the adapter that answers, by the scheduler's name for it; None for the model alone.
    """

    ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: frozenset[int]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    tools: Callable[[], Tool] | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Token:
    """A token that was generated.

    Attributes:
        id: the token.
        forced: whether a tool wrote it.
        logprob: its log probability, None unless asked for; by the model's own distribution, before
            temperature, penalties and bias.
        top: the likeliest tokens and their log probabilities, as many as were asked for.
    """

    id: int
    forced: bool
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Finished:
    """The end of a continuation.

    Attributes:
        reason: "stop" after a stop token, "length" after ``max_tokens``.
    """

    reason: Literal["stop", "length"]


Deliver = Callable[[Token | Finished | Exception], None]
"""Called on the model's thread with each token, then once with the end or an error.

It must return at once. An exception that it raises ends its request.
"""


class Busy(MlxchatError):  # noqa: N818  (it reads like a name in `except Busy`)
    """The queue is full; a retry can work."""


class Closed(MlxchatError):  # noqa: N818
    """The scheduler is closed, or its model has failed permanently."""


@dataclass(frozen=True)
class Stats:
    """The current load of a scheduler, and its work since it was created."""

    queued: int
    running: int  # answers being generated, and prompts being read
    slots: int
    generated_tokens: int
    prompt_tokens: int  # of prompts that were read
    cached_tokens: int  # of those, how many had been read before
    cache_bytes: int


def require_answerable(request: Request, config: GPTConfig, adapters: Set[str | None]) -> None:
    """Raise ValueError for what would fail, or be undefined, on the model's thread."""
    if request.adapter not in adapters:
        raise ValueError(f"there is no adapter {request.adapter!r}")
    if not request.ids or request.max_tokens < 1:
        raise ValueError("a request has at least one token, and asks for at least one")
    if len(request.ids) + request.max_tokens > config.sequence_len:
        raise ValueError(f"the context is {config.sequence_len} tokens")
    tokens = {*request.ids, *request.logit_bias}
    if min(tokens) < 0 or max(tokens) >= config.vocab_size:
        raise ValueError(f"the vocabulary has {config.vocab_size} tokens")
    if not 0 <= request.seed < 2**64:
        raise ValueError("a seed is a number of 64 bits")
