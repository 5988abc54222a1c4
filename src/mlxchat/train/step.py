"""An optimizer step: what it is computed with, and the function that launches it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from mlxchat.data.loader import Batch, Stopped
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.optim.gradients import compile_gradients
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.memory import BatchPlan
from mlxchat.runtime import mx
from mlxchat.streams import one_thread_each
from mlxchat.telemetry.events import Event
from mlxchat.train.loop import Launch, Pending, ShouldStop
from mlxchat.train.world import ALONE, World

SHARES = "shares of the loss"  # the key of the losses among the gradients, while they are summed

Draw = Callable[[], list[Batch]]
"""Returns the batches of a step, or the first of an evaluation; it may wait for a shard."""

MicroBatch = tuple[mx.array, mx.array, mx.array | None]
"""Ids and targets, both (B, T), and the weights of the rows' losses, (B,), if they have any."""


@dataclass(frozen=True)
class StepParts:
    """Everything that a run's optimizer steps are computed with.

    Attributes:
        model: the model, updated in place.
        optimizer: updates it.
        batches: the training batches, from the run's place in the data.
        rates: returns the learning rates and other schedules, by the number of steps done.
        plan: the division of a step into micro-batches.
        grad_clip: the largest gradient norm; 0 for no limit.
        dropout: the share of numbers that is zeroed.
        seed: decides, with the number of the step, which ones.
        world: the ranks, each of which computes with its own rows of every step.
        draw: given the number of a step and a function that draws its batches, returns them once
            all ranks have theirs.
        own_batches: whether ``batches`` are those of this rank alone, made when all ranks know of
            the step; otherwise every rank reads the batches of all.
        take_events: returns the events about the batches drawn last, once.
    """

    model: GPT
    optimizer: MuonAdamW
    batches: Iterator[Batch]
    rates: Callable[[int], Rates]
    plan: BatchPlan
    grad_clip: float
    dropout: float = 0.0
    seed: int = 0
    world: World = ALONE
    draw: Callable[[int, Draw], list[Batch]] = lambda number, draw: draw()
    own_batches: bool = False
    take_events: Callable[[], Sequence[Event]] = lambda: ()

    def keys(self, number: int) -> list[mx.array | None]:
        """Return the random key of dropout in each micro-batch of a step; None without dropout."""
        own = self.own_plan.accumulation
        if not self.dropout:
            return [None] * own
        step_key = mx.random.key((self.seed << 32) + number)
        keys = [*mx.random.split(step_key, own * self.world.size)]  # of all ranks
        return keys[self.world.rank :: self.world.size]

    @property
    def own_plan(self) -> BatchPlan:
        """The division of this rank's rows of a step."""
        return self.plan.per_rank(self.world.size)

    def next_batches(self, number: int) -> list[Batch]:
        """Return the batches of a step, which all ranks make."""
        if self.own_batches:
            self.draw(number, list)  # nothing is drawn: it only waits until all know of the step
            return list(islice(self.batches, self.own_plan.accumulation))
        return self.draw(number, lambda: list(islice(self.batches, self.plan.accumulation)))

    def own_rows(self, batches: Sequence[Batch]) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a step."""
        if self.world.alone or self.own_batches:
            for batch in batches:
                weights = None if batch.weights is None else mx.array(batch.weights)
                yield mx.array(batch.ids), mx.array(batch.targets), weights
            return
        own = self.world.rows(self.plan.rows_per_step)
        ids = np.concatenate([batch.ids for batch in batches])[own]
        targets = np.concatenate([batch.targets for batch in batches])[own]
        size = self.own_plan.device_batch_size
        for first in range(0, len(ids), size):
            part = slice(first, first + size)
            yield mx.array(ids[part]), mx.array(targets[part]), None


class Compile(Protocol):
    """The type of `compile_step`; tests substitute their own functions."""

    def __call__(self, parts: StepParts, stop: ShouldStop = ...) -> Launch:
        """Make the function that launches a step."""


def compile_step(parts: StepParts, stop: ShouldStop = lambda: False) -> Launch:
    """Make the function that starts an optimizer step on the device without waiting for its end.

    Whatever changes from step to step is an array, so that nothing is traced again. ``stop`` is
    polled before each micro-batch; if it returns True, the function raises `Stopped`, and the model
    is as it was before the step.
    """
    model, optimizer, plan, world = parts.model, parts.optimizer, parts.own_plan, parts.world
    accumulate = compile_gradients(
        model, plan.chunk_rows, plan.grad_checkpoint, plan.streams, parts.dropout
    )

    @one_thread_each(plan.streams)
    def launch(number: int) -> Pending:
        batches = parts.next_batches(number)
        count = mx.array(_divisor(batches))
        shares, gradients = list[mx.array](), Arrays()  # shares of the loss, each a scalar
        own = zip(parts.own_rows(batches), parts.keys(number), strict=True)
        for (ids, targets, weights), key in own:
            if stop():
                raise Stopped
            if not len(ids):  # nothing is left to learn from
                shares.append(mx.array(0.0))
                continue
            parameters = model.named_trainable()
            share, gradients = accumulate(parameters, ids, targets, count, gradients, key, weights)
            mx.async_eval(share, gradients)
            mx.eval(shares[-1:])  # no more than one micro-batch under way
            shares.append(share)
        gradients[SHARES] = mx.stack(shares)  # summed over the ranks along with the gradients
        gradients = world.all_sum(gradients, world.sent_as)
        summed_shares = gradients.pop(SHARES)
        rates = parts.rates(number - 1)
        norm = optimizer.update(model, gradients, rates, parts.grad_clip, plan.streams)
        del gradients  # so that the update can reuse their memory
        metrics = mx.concatenate([mx.stack([norm, rates.shown]), summed_shares])
        mx.async_eval(model.parameters(), optimizer.state, metrics)
        waited, events = world.seconds_waited(), parts.take_events()
        return Pending(number, metrics, batches[-1].state, waited, events)

    return launch


def _divisor(batches: Sequence[Batch]) -> int:
    """Return the divisor of the sum of a step's losses: their number, or 1 if they have weights."""
    if any(batch.weights is not None for batch in batches):
        return 1
    return max(1, sum(int((batch.targets >= 0).sum()) for batch in batches))
