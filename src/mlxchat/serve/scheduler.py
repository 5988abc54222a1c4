"""One thread owns the model and answers requests from a bounded queue, many in parallel.

Between two decoding steps, the thread reads one piece of the next prompt. Pieces have a bounded
size, so no answer stalls for longer than one piece takes. MLX's arrays belong to the thread that
computes with them, so no other thread touches the model.

The model may have several adapters. The answers of one adapter advance together, as do those of the
model without an adapter, and these groups take turns, one token each.

If a request's receiver or tool fails, or its prompt cannot be read, only that request ends. If the
model fails in a step, the requests in that step get the error, and the thread continues with the
others. If it fails repeatedly without a good step in between, the scheduler shuts down and reports
that. A prompt that cannot be read counts as such a failure only if the model cannot read a single
token either, since it may just be too long for the free memory.
"""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from mlxchat.counts import counted
from mlxchat.device_failures import device_error
from mlxchat.engine.cache import KVCache
from mlxchat.engine.continuous import ActiveSequence, ContinuousBatch, GeneratedToken, TokenSettings
from mlxchat.engine.generate import PREFILL_CHUNK, Tool
from mlxchat.engine.rows import Layout, Past
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import scaling_parameters
from mlxchat.runtime import machine, mx
from mlxchat.serve.prefixes import Prefixes
from mlxchat.serve.requests import (
    Busy,
    Closed,
    Deliver,
    Finished,
    Request,
    Stats,
    Token,
    require_answerable,
)

CACHE_BYTES = 2**30
MOST_FAILURES = 3  # of the model without a good step in between, after which it counts as dead
PIECE_OPERATIONS = {"cpu": 1e10, "metal": 1e12, "cuda": 1e13}  # a quarter of a second, or less
SHORTEST_PIECE = 32
FREE_AFTER = 10.0  # idle seconds; buffers made anew delay the first token of the next turn
CLEAR_EVERY = 512  # steps: buffers that MLX keeps for reuse are freed, or they would add up


class Ticket:
    """A request that was submitted."""

    def __init__(self, scheduler: "Scheduler", request: Request, deliver: Deliver) -> None:
        self.cached_tokens = 0  # of the prompt; known when it has been read
        self._scheduler = scheduler
        self._request = request
        self._deliver = deliver
        self._cancelled = False
        self._cache: KVCache | None = None  # while the prompt is being read
        self._past_and_logits: tuple[Past, mx.array] | None = None  # once it has been
        self._tool: Tool | None = None
        self._generated = 0

    def cancel(self) -> None:
        """End the request without another delivery; its slot is free at the next token."""
        self._scheduler._cancel(self)


class Scheduler:
    """Answers requests with a model, up to ``slots`` at a time.

    Call `close` when done.

    Args:
        model: from now on used only by this scheduler.
        adapted: the same model with an adapter on it, by the adapter's name; likewise.
        slots: the maximum number of answers in parallel.
        queue: the maximum number of waiting requests.
        cache_bytes: the size of the prompt cache.
        log: called on the model's thread with the traceback of each failure of the model.
    """

    def __init__(
        self,
        model: GPT,
        adapted: Mapping[str, GPT] | None = None,
        *,
        slots: int = 16,
        queue: int = 64,
        cache_bytes: int = CACHE_BYTES,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._models: dict[str | None, GPT] = {None: model}
        self._models.update(adapted or {})
        for each in self._models.values():  # arrays still to be computed belong to this thread
            mx.eval(each.parameters())
        self._config, self._layout = model.config, Layout(model.config)
        self._slots = slots
        self._queue_size = queue
        self._piece = piece_size(model.config)
        self._log = log
        self._changed = threading.Condition()  # holds what follows, up to the empty line
        self._queue: deque[Ticket] = deque()
        self._closing = False
        self._abandoned = False  # what runs is to end now
        self._dead: Exception | None = None
        self._generated = self._prompts = self._cached = 0

        # The rest belongs to the model's thread.
        self._reading: Ticket | None = None
        self._running: dict[ActiveSequence, Ticket] = {}
        self._batches = self._empty_batches()
        self._prefixes = Prefixes(cache_bytes)
        self._failures = self._steps = 0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are answered: False when the model has failed for good, or closed."""
        return self._dead is None and self._thread.is_alive()

    def submit(self, request: Request, deliver: Deliver) -> Ticket:
        """Queue a request; from any thread.

        Raises:
            Busy: the queue is full.
            Closed: the scheduler is closed, or its model has failed for good.
            ValueError: the prompt is empty, or it and ``max_tokens`` pass the context, or a token
                is not in the vocabulary, or the seed not of 64 bits, or there is no such adapter.
        """
        require_answerable(request, self._config, self._models.keys())
        ticket = Ticket(self, request, deliver)
        with self._changed:
            if self._closing or not self.alive:
                raise _closed(self._dead)
            if len(self._queue) >= self._queue_size:
                raise Busy(
                    f"The queue is full ({counted(self._queue_size, 'requests')}).",
                    "Try again in a moment.",
                )
            self._queue.append(ticket)
            self._changed.notify_all()
        return ticket

    def stats(self) -> Stats:
        """Return the numbers of now; from any thread."""
        with self._changed:
            return Stats(
                len(self._queue),
                len(self._running) + (self._reading is not None),
                self._slots,
                self._generated,
                self._prompts,
                self._cached,
                self._prefixes.size,
            )

    def close(self, seconds: float) -> None:
        """Refuse new requests, and end; from any thread but the model's.

        What waits gets a `Closed` at once. What is being answered gets so many seconds to end, then
        a `Closed` too.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        self._thread.join()

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            ticket._cancelled = True
            if ticket in self._queue:
                self._queue.remove(ticket)
            self._changed.notify_all()

    # ==== The model's thread ====

    def _run(self) -> None:
        try:
            while self._wait():
                for work, clean_up in (
                    (self._drop_cancelled, self._start_over),
                    (self._read_piece, self._give_up_reading),
                    (self._advance, self._start_over),
                ):
                    if error := _failure(work):
                        clean_up(self._reported(error))
        except Exception as error:  # noqa: BLE001  (freeing memory, or cleaning up, has failed)
            self._die(self._reported(error))
        finally:
            with self._changed:
                self._closing = self._abandoned = True
            self._end_all(_closed(self._dead))
            self._prefixes.clear()
        mx.clear_cache()

    def _wait(self) -> bool:
        """Wait until there is something to do; returns False when there never will be again."""
        with self._changed:
            if self._dead is None and not self._changed.wait_for(self._has_work, FREE_AFTER):
                mx.clear_cache()
                self._changed.wait_for(self._has_work)
            if self._abandoned or self._dead is not None:
                return False
            if not self._closing:
                if self._queue and self._reading is None and len(self._running) < self._slots:
                    self._reading = self._queue.popleft()
                return True
            waiting, self._queue = list(self._queue), deque()
        for ticket in waiting:
            self._deliver(ticket, _closed(None))
        return self._busy

    def _has_work(self) -> bool:
        return bool(self._busy or self._queue or self._closing)

    @property
    def _busy(self) -> bool:
        return bool(self._running) or self._reading is not None

    def _drop_cancelled(self) -> None:
        if self._reading is not None and self._reading._cancelled:
            self._reading = None
        for member, ticket in list(self._running.items()):
            if ticket._cancelled:
                self._leave(member)

    def _read_piece(self) -> None:
        """Read a piece of the prompt that is next. It touches nothing of other requests."""
        ticket = self._reading
        if ticket is None:
            return
        ids, adapter = ticket._request.ids, ticket._request.adapter
        if ticket._cache is None:
            shared, past = self._prefixes.longest(ids, adapter)
            ticket._cache = self._layout.cache(ids[:shared], past)
            ticket.cached_tokens = shared
        read = ticket._cache.offset
        piece, model = mx.array([ids[read : read + self._piece]]), self._models[adapter]
        features = model.features(piece, ticket._cache)
        mx.eval(features)
        self._count_step()
        if ticket._cache.offset == len(ids):
            past, logits = self._layout.past(ticket._cache), model.logits(features[:, -1])
            mx.eval(logits)
            ticket._cache, ticket._past_and_logits = None, (past, logits)

    def _advance(self) -> None:
        """Let a prompt that has been read join the others, and generate a token of each."""
        ticket = self._reading
        if ticket is not None and ticket._past_and_logits is not None:
            self._join(ticket, *ticket._past_and_logits)
        if not self._running:
            return
        for batch in self._batches.values():
            for member, chosen in batch.step() if batch.members else ():
                self._take(self._running[member], member, chosen)
        self._failures = 0
        self._count_step()

    def _join(self, ticket: Ticket, past: Past, logits: mx.array) -> None:
        """Let a prompt join; its first token follows."""
        request = ticket._request
        ticket._past_and_logits = None
        self._prefixes.keep(request.ids, past, request.adapter)
        settings = TokenSettings(
            request.sampling,
            request.seed,
            request.presence_penalty,
            request.frequency_penalty,
            request.logit_bias,
            request.logprobs,
        )
        batch = self._batches[request.adapter]
        member, first = batch.join(request.ids, past, logits, settings, request.stop)
        with self._changed:
            self._reading, self._running[member] = None, ticket
            self._prompts += len(request.ids)
            self._cached += ticket.cached_tokens
        self._take(ticket, member, first)

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps % CLEAR_EVERY == 0:
            mx.clear_cache()

    def _take(self, ticket: Ticket, member: ActiveSequence, chosen: GeneratedToken) -> None:
        """Deliver a token of an answer, or its end."""
        request = ticket._request
        if chosen.id in request.stop:
            self._finish(ticket, member, "stop")
            return
        ticket._generated += 1
        self._generated += 1
        delivered = self._deliver(
            ticket, Token(chosen.id, chosen.forced, chosen.logprob, chosen.top)
        )
        if not delivered:
            self._leave(member)
        elif ticket._generated == request.max_tokens:
            self._finish(ticket, member, "length")
        elif request.tools is not None:
            self._use_tool(ticket, member, chosen.id, request.tools)

    def _use_tool(
        self, ticket: Ticket, member: ActiveSequence, token: int, tools: Callable[[], Tool]
    ) -> None:
        def force() -> None:
            ticket._tool = ticket._tool or tools()
            forced = ticket._tool(token)
            if forced is not None:
                self._batches[ticket._request.adapter].force(member, forced)

        if error := _failure(force):
            self._leave(member)
            self._deliver(ticket, error)

    def _finish(
        self, ticket: Ticket, member: ActiveSequence, reason: Literal["stop", "length"]
    ) -> None:
        self._leave(member)
        self._failures = 0  # an answer of one token ends without a step
        self._deliver(ticket, Finished(reason))

    def _leave(self, member: ActiveSequence) -> None:
        adapter = self._running[member]._request.adapter
        batch = self._batches[adapter]
        if self._prefixes.limit:
            self._prefixes.keep(*batch.past(member), adapter)
        batch.leave(member)
        with self._changed:
            del self._running[member]

    def _deliver(self, ticket: Ticket, what: Token | Finished | Exception) -> bool:
        """Return whether the request goes on: not after its own failure, nor once cancelled."""
        if not ticket._cancelled and _failure(partial(ticket._deliver, what)):
            ticket._cancelled = True
        return not ticket._cancelled

    def _reported(self, error: Exception) -> Exception:
        """Log a failure with its traceback; returns what its requests are told."""
        _failure(partial(self._log, "".join(traceback.format_exception(error)).rstrip()))
        error.__traceback__ = None  # its frames hold arrays, whose memory is needed
        return device_error(error) or error

    def _give_up_reading(self, error: Exception) -> None:
        """End the request whose prompt could not be read, and make room for the next."""
        with self._changed:
            ticket, self._reading = self._reading, None
        if ticket is not None:
            ticket._cache = None
            self._deliver(ticket, error)
        self._prefixes.clear()
        mx.clear_cache()
        if failed := _failure(self._read_one_token):
            self._start_over(self._reported(failed))

    def _read_one_token(self) -> None:
        mx.eval(self._models[None](mx.array([[0]])))

    def _start_over(self, error: Exception) -> None:
        """End what the model was doing with an error, and start over."""
        self._failures += 1
        self._end_all(error)
        self._prefixes.clear()
        self._batches = self._empty_batches()
        mx.clear_cache()
        if self._failures == MOST_FAILURES:
            self._die(error)

    def _empty_batches(self) -> dict[str | None, ContinuousBatch]:
        return {name: ContinuousBatch(model) for name, model in self._models.items()}

    def _die(self, error: Exception) -> None:
        with self._changed:
            self._dead = error

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            ended = [*self._running.values()]
            if self._reading is not None:
                ended.append(self._reading)
            if self._dead is not None or self._abandoned:
                ended += self._queue
                self._queue.clear()
            self._running, self._reading = {}, None
        for ticket in ended:
            self._deliver(ticket, error)


def _failure(call: Callable[[], None]) -> Exception | None:
    """Return the exception that a request's own function raises: it must not end the others."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  (it may be any)
        return error
    return None


def _closed(error: Exception | None) -> Closed:
    if error is None:
        return Closed("The server is stopping.", "Try again once it is back.")
    return Closed(f"The model failed permanently: {error}", "Restart the server.")


def piece_size(config: GPTConfig) -> int:
    """Return how many tokens of a prompt are read at a time between two tokens of others' answers.

    It depends on the model and the kind of machine only. A prompt's first piece begins after the
    tokens that were in the cache, so that its pieces, and with them the rounding of sums, are the
    same each time only if the same tokens were. In bfloat16 that can change what is drawn.
    """
    most = PIECE_OPERATIONS[machine().backend] / (2 * scaling_parameters(config))
    size = SHORTEST_PIECE
    while 2 * size <= min(most, PREFILL_CHUNK):
        size *= 2
    return size
