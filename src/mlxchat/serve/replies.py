"""OpenAI's two answer formats, chats and completions, each complete or in chunks."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Protocol

from pydantic import BaseModel

from mlxchat.serve.answering import Collected, Delivery
from mlxchat.serve.reply_schema import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    ReplyMessage,
    TokenUsage,
)
from mlxchat.serve.text import Scored, completion_logprobs


class Replies(Protocol):
    """Writes the answers to one request in one of OpenAI's formats."""

    def whole(self, answers: Sequence[Collected], usage: TokenUsage) -> BaseModel:
        """Return all answers as one."""

    def opening(self, count: int) -> Iterator[BaseModel]:
        """Yield the chunks before the first token."""

    def chunks(self, delivery: Delivery) -> Iterator[BaseModel]:
        """Yield the chunks of what can be delivered."""

    def closing(self, usage: TokenUsage) -> BaseModel:
        """Return the chunk with the usage, which is the last one."""


class ChatReplies:
    """The form of ``/v1/chat/completions``.

    Args:
        model: the name of the model.
        logprobs: whether log probabilities were asked for.
    """

    def __init__(self, model: str, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._id, self._created, self._model = _new_id("chatcmpl"), int(time.time()), model

    def whole(self, answers: Sequence[Collected], usage: TokenUsage) -> ChatCompletion:
        """Return all answers as one."""
        choices = [
            ChatChoice(
                index=index,
                message=ReplyMessage(content=answer.text, calculations=answer.calculations or None),
                logprobs=self._scores(answer.scored),
                finish_reason=answer.reason,
            )
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )

    def opening(self, count: int) -> Iterator[ChatChunk]:
        """Yield a chunk for each answer that says whose it is."""
        for index in range(count):
            yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))

    def chunks(self, delivery: Delivery) -> Iterator[ChatChunk]:
        """Yield a chunk of what can be delivered, and one without it that ends the answer."""
        increment, index = delivery.increment, delivery.index
        if increment:
            delta = Delta(content=increment.text, calculations=increment.calculations or None)
            scores = self._scores(increment.scored)
            yield self._chunk(ChunkChoice(index=index, delta=delta, logprobs=scores))
        if delivery.reason:
            yield self._chunk(
                ChunkChoice(index=index, delta=Delta(), finish_reason=delivery.reason)
            )

    def closing(self, usage: TokenUsage) -> ChatChunk:
        """Return the chunk with the usage, which is the last one."""
        return self._chunk(usage=usage)

    def _chunk(self, *choices: ChunkChoice, usage: TokenUsage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            usage=usage,
        )

    def _scores(self, scored: Sequence[Scored]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return ChatLogprobs(content=[each.logprob for each in scored])


class CompletionReplies:
    """The form of ``/v1/completions``.

    Args:
        model: the name of the model.
        logprobs: the number of alternatives that were asked for with each token; None for no log
            probabilities at all.
    """

    def __init__(self, model: str, logprobs: int | None) -> None:
        self._logprobs = logprobs
        self._id, self._created, self._model = _new_id("cmpl"), int(time.time()), model

    def whole(self, answers: Sequence[Collected], usage: TokenUsage) -> Completion:
        """Return all completions as one."""
        choices = [
            CompletionChoice(
                index=index,
                text=answer.text,
                logprobs=self._scores(answer.scored),
                finish_reason=answer.reason,
            )
            for index, answer in enumerate(answers)
        ]
        return self._completion(*choices, usage=usage)

    def opening(self, count: int) -> Iterator[Completion]:
        """Yield nothing: a completion has no chunk before its text."""
        return iter(())

    def chunks(self, delivery: Delivery) -> Iterator[Completion]:
        """Yield one chunk of what can be delivered."""
        yield self._completion(
            CompletionChoice(
                index=delivery.index,
                text=delivery.increment.text,
                logprobs=self._scores(delivery.increment.scored),
                finish_reason=delivery.reason,
            )
        )

    def closing(self, usage: TokenUsage) -> Completion:
        """Return the chunk with the usage, which is the last one."""
        return self._completion(usage=usage)

    def _completion(
        self, *choices: CompletionChoice, usage: TokenUsage | None = None
    ) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            usage=usage,
        )

    def _scores(self, scored: Sequence[Scored]) -> CompletionLogprobs | None:
        return None if self._logprobs is None else completion_logprobs(scored, bool(self._logprobs))


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
