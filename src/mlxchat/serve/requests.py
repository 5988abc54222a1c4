"""A request to the scheduler, and what is delivered in answer to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlxchat.config.inference import Sampling
from mlxchat.engine.generate import Tool
from mlxchat.errors import MlxchatError


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
        logprobs: deliver each token's log probability, and so many of the likeliest alternatives,
            at most 20; None for neither.
        tools: called once, on the model's thread; returns what forces tokens.
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
    """The scheduler is closed, or its model has failed for good."""
