"""The answers to one request while they are being generated; runs in the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from mlxchat.device_failures import device_error
from mlxchat.errors import MlxchatError, reason_of
from mlxchat.serve.errors import ApiError
from mlxchat.serve.metrics import Work
from mlxchat.serve.reply_schema import Calculation, FinishReason, PromptDetails, TokenUsage
from mlxchat.serve.requests import Busy, Closed, Finished, Request, Token
from mlxchat.serve.scheduler import Scheduler, Ticket
from mlxchat.serve.text import Increment, Scored, Transcript

KEEP_ALIVE = 15.0  # seconds without a word, after which a comment tells a client to wait on

Arrival = Token | Finished | Exception


@dataclass(frozen=True)
class Delivery:
    """A piece of one of the answers, and the reason if the answer ends with it."""

    index: int
    increment: Increment
    reason: FinishReason | None


@dataclass
class Collected:
    """A complete answer."""

    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    calculations: list[Calculation] = field(default_factory=list)
    reason: FinishReason = "stop"


class Inbox:
    """Passes what the model's thread delivers to an event loop.

    A step of the model yields a token for each answer. Waking the loop costs the thread a system
    call, so it is woken only once for everything that arrives before it looks.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._arrived: deque[tuple[asyncio.Queue[tuple[int, Arrival]], int, Arrival]] = deque()
        self._woken = False

    def deliver(
        self, queue: asyncio.Queue[tuple[int, Arrival]], index: int, arrival: Arrival
    ) -> None:
        """Pass something on to a queue of the loop; called on the model's thread."""
        self._arrived.append((queue, index, arrival))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed, when the server ends at once
                self.loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        self._woken = False  # first: what comes from here on wakes the loop again
        while self._arrived:
            queue, index, arrival = self._arrived.popleft()
            queue.put_nowait((index, arrival))


class Answering:
    """The answers to one request; closing it cancels all of them.

    Created and used within the event loop.

    Args:
        scheduler: generates them.
        inbox: the event loop's inbox.
        requests: one for each answer; those for the same prompt are adjacent.
        transcripts: the transcript of each answer.
        per_prompt: the number of answers to each prompt.
        seconds: the time after which answers are cut off.
        work: receives the numbers for the log.

    Raises:
        ApiError: 429 if the queue is full, 503 if the server is shutting down.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        inbox: Inbox,
        requests: Sequence[Request],
        transcripts: Sequence[Transcript],
        *,
        per_prompt: int,
        seconds: float,
        work: Work,
    ) -> None:
        self._start = time.monotonic()
        self._deadline = self._start + seconds
        self._arrived: asyncio.Queue[tuple[int, Arrival]] = asyncio.Queue()
        self._prompt_tokens = sum(len(request.ids) for request in requests[::per_prompt])
        self._transcripts = transcripts
        self._per_prompt = per_prompt
        self._work = work
        self._tickets: list[Ticket] = []
        try:
            for index, request in enumerate(requests):
                deliver = partial(inbox.deliver, self._arrived, index)
                self._tickets.append(scheduler.submit(request, deliver))
        except Busy as error:
            raise ApiError(429, error.problem, code="rate_limit_exceeded") from error
        except Closed as error:
            raise ApiError(503, error.problem, code="server_closing") from error
        finally:
            if len(self._tickets) < len(requests):
                self.close()

    def close(self) -> None:
        """Give up what is not finished. Its slots are free at the next token."""
        for ticket in self._tickets:
            ticket.cancel()
        self._work.prompt_tokens = self._prompt_tokens
        self._work.completion_tokens = sum(each.tokens for each in self._transcripts)

    @property
    def usage(self) -> TokenUsage:
        """The tokens read and written so far; answers to the same prompt read it once."""
        written = sum(transcript.tokens for transcript in self._transcripts)
        cached = sum(ticket.cached_tokens for ticket in self._tickets[:: self._per_prompt])
        return TokenUsage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=written,
            total_tokens=self._prompt_tokens + written,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )

    async def deliveries(self) -> AsyncIterator[Delivery | None]:
        """Yield what can be delivered as it comes; None after each `KEEP_ALIVE` without any.

        Raises:
            ApiError: the model failed, or the time was up before it wrote anything.
        """
        running = set(range(len(self._transcripts)))
        while running:
            try:
                index, arrival = await self._next()
            except asyncio.TimeoutError:
                if time.monotonic() < self._deadline:
                    yield None
                    continue
                for index in sorted(running):
                    yield Delivery(index, self._cut(index), "length")
                self._work.note = "timed out"
                return
            if index not in running:
                continue  # what came before the thread knew that it had ended
            delivery = self._delivery(index, arrival)
            if delivery.reason:
                running.remove(index)
            if delivery.reason or delivery.increment:
                yield delivery

    async def collected(self) -> list[Collected]:
        """Return the whole answers.

        Raises:
            ApiError: as `deliveries`.
        """
        answers = [Collected() for _ in self._transcripts]
        async for delivery in self.deliveries():
            if delivery is None:
                continue
            answer, increment = answers[delivery.index], delivery.increment
            answer.text += increment.text
            answer.scored += increment.scored
            answer.calculations += increment.calculations
            answer.reason = delivery.reason or answer.reason
        return answers

    async def _next(self) -> tuple[int, Arrival]:
        with suppress(asyncio.QueueEmpty):
            return self._arrived.get_nowait()
        left = self._deadline - time.monotonic()
        return await asyncio.wait_for(self._arrived.get(), max(0.0, min(KEEP_ALIVE, left)))

    def _delivery(self, index: int, arrival: Arrival) -> Delivery:
        transcript = self._transcripts[index]
        if isinstance(arrival, Exception):
            self._work.note = f"failed: {type(arrival).__name__}: {reason_of(arrival)}"
            raise _failure(arrival) from arrival
        if isinstance(arrival, Finished):
            increment = transcript.end()
            return Delivery(index, increment, "stop" if transcript.stopped else arrival.reason)
        if self._work.first is None:
            self._work.first = time.monotonic() - self._start
        increment = transcript.take(arrival)
        if transcript.stopped:
            self._tickets[index].cancel()
        return Delivery(index, increment, "stop" if transcript.stopped else None)

    def _cut(self, index: int) -> Increment:
        """Return the rest of an answer whose time is up."""
        if self._work.first is None:
            raise ApiError(
                503, "The request waited too long for a free slot. Try again later.", code="timeout"
            )
        return self._transcripts[index].end()


def _failure(error: Exception) -> ApiError:
    """Return what a client is told of a failure of the model."""
    if isinstance(error, Closed):
        return ApiError(503, error.problem, code="server_closing")
    known = error if isinstance(error, MlxchatError) else device_error(error)
    problem = known.problem if known else "The model failed."
    return ApiError(500, f"{problem.rstrip('.')}. See the server's log for details.")
