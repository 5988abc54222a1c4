"""The training loop, which is the same for every stage. It yields events and displays nothing.

`train` decides the order of steps, evaluations, samples and checkpoints, and when to stop. It knows
nothing about models: it calls a function that launches a step, which `compile_step` makes from
`StepParts`, and the run's `Hooks`. The loss of a step is read while the next one runs, so the
device never waits.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from mlxchat.data.loader import Batch, LoaderState, Stopped
from mlxchat.errors import MlxchatError
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.optim.gradients import compile_gradients
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.memory import BatchPlan
from mlxchat.runtime import memory_use, mx
from mlxchat.streams import one_thread_each
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Ended, Evaluated, Event, Position, Stepped
from mlxchat.train.divergence import check_numbers
from mlxchat.train.world import ALONE, World

# ==== The loop ===================================================================================

SHARES = "shares of the loss"  # among the gradients by name

ShouldStop = Callable[[], bool]  # polled; returns True to save and stop


@dataclass(frozen=True)
class Pending:
    """A step that has been launched on the device.

    Attributes:
        metrics: the gradient norm, the learning rate (`Rates.shown`) and, of each micro-batch, its
            share of the loss: (2 + accumulation,).
        state: the loader's state after the step's last batch.
        waited: seconds spent on summing gradients with other ranks; None for a single process.
        news: events about the step's data, yielded before the step's own event.
    """

    step: int
    metrics: mx.array
    state: LoaderState
    waited: float | None = None
    news: Sequence[Event] = ()

    def read(self) -> tuple[float, float, float]:
        """Wait for the step; return its loss, the gradient norm and the learning rate.

        The shares are added in double precision: over hundreds of micro-batches a float32 sum
        drifts by 1e-4.
        """
        norm, learning_rate, *shares = np.array(self.metrics).tolist()
        return sum(shares), norm, learning_rate


Launch = Callable[[int], Pending]
"""Starts the step of that number; raises `Stopped` if told to stop before it is launched whole."""


@dataclass(frozen=True)
class Cadence:
    """Steps between evaluations, measurements of CORE, samples and checkpoints; 0: never.

    The last step is always saved; it is also evaluated and sampled, unless that cadence is 0. Once
    text is read for a second time, a step with the best evaluation so far is saved too (unless the
    cadence is 0), because a model that memorizes its text gets worse.
    """

    eval_every: int = 0
    core_every: int = 0
    sample_every: int = 0
    save_every: int = 0


def nothing(*_: object) -> Iterator[Event]:
    """Yield no event: the hook of a run that does not evaluate, sample or save."""
    return iter(())


@dataclass(frozen=True)
class Hooks:
    """Callbacks of a run between steps; each gets the number of completed steps.

    Attributes:
        clock: stamps the events and times the steps.
        evaluate: measures the validation loss, yielding its events.
        core: measures CORE, yielding its events.
        sample: has the model continue prompts, yielding its events.
        save: saves a checkpoint with the loader's state after the step, yielding its events.
        stop: polled; returns True when the run should save and stop.
    """

    clock: Clock
    evaluate: Callable[[int], Iterator[Event]] = nothing
    core: Callable[[int], Iterator[Event]] = nothing
    sample: Callable[[int], Iterator[Event]] = nothing
    save: Callable[[int, LoaderState], Iterator[Event]] = nothing
    stop: ShouldStop = lambda: False


def train(
    launch: Launch,
    total_steps: Callable[[], int],
    hooks: Hooks,
    cadence: Cadence = Cadence(),
    *,
    step: int = 0,
    evaluated: bool = False,
    core_measured: bool = False,
    shards: int = 1,
    ahead: bool = True,
    computes_at_launch: bool = False,
) -> Iterator[Event]:
    """Train from ``step`` to the last one, or until ``hooks.stop`` returns True.

    The last complete step is saved before the run ends, and also before an error is raised because
    data cannot be read or an evaluation or a sample failed.

    Args:
        launch: starts a step.
        total_steps: returns the number of the last step. It may change after any event, but not to
            a step that has been launched before.
        hooks: the activities between steps.
        cadence: how often each of them is due.
        step: the number of steps done so far.
        evaluated: whether that step has been evaluated already.
        core_measured: whether its CORE has been measured already; it is not of new models.
        shards: the number of training shards, for the position in each `Stepped`.
        ahead: launch a step while the device still computes the one before. One that begins with
            samples of the model would wait for it anyway.
        computes_at_launch: whether a step is done when it has been launched, but for a few of its
            operations. On CPUs it is: MLX queues no more than ten there.

    Raises:
        MlxchatError: data cannot be read, or an evaluation or a sample failed.
        NotFiniteError: the loss or gradient norm of a step is NaN or infinite; neither that step
            nor a later one has been saved.
    """
    if cadence.eval_every and step % cadence.eval_every == 0 and not evaluated:
        yield from _until_stopped(hooks.evaluate(step), hooks.stop)
    if step and cadence.core_every and step % cadence.core_every == 0 and not core_measured:
        yield from _until_stopped(hooks.core(step), hooks.stop)

    launched: Pending | None = None  # the step launched last
    ended: float | None = None  # when it was done, if that is known
    reported = True  # whether its `Stepped` has been yielded
    saved_step = step
    # `Stepped.seconds` counts from here: the end of the previous step or of the activities after
    # it, so evaluations, samples and checkpoints do not count as training.
    timed_from = hooks.clock.seconds()
    while step < total_steps():
        if launched and not reported and not ahead:
            yield from _finish(launched, timed_from, ended, hooks.clock, shards)
            reported, timed_from = True, hooks.clock.seconds()
        try:
            following = launch(step + 1)  # while the device still computes the step before
            following_ended = hooks.clock.seconds() if computes_at_launch else None
        except (Stopped, MlxchatError) as error:
            if launched and not reported:
                yield from _finish(launched, timed_from, ended, hooks.clock, shards)
            if launched and launched.step > saved_step:
                yield from hooks.save(launched.step, launched.state)
            if not isinstance(error, Stopped):
                raise
            yield Ended(hooks.clock(), step, "interrupted")
            return
        if launched and not reported:
            yield from _finish(launched, timed_from, ended, hooks.clock, shards)
            timed_from = hooks.clock.seconds() if ended is None else ended
        launched, reported, ended = following, False, following_ended
        step = launched.step

        last = step == total_steps()
        activities = _due(cadence, hooks, step, last)
        save_due = last or (cadence.save_every and step % cadence.save_every == 0)
        if not (save_due or activities):
            continue
        # These need the step's parameters: wait for it before the next one is launched.
        yield from _finish(launched, timed_from, ended, hooks.clock, shards)
        reported = True
        failure, best = yield from _perform(activities, step, hooks.stop, last)
        read_again = launched.state.cursor.epoch > 1
        if save_due or failure or (best and read_again and cadence.save_every):
            yield from hooks.save(step, launched.state)
            saved_step = step
        if failure:
            raise failure
        timed_from = hooks.clock.seconds()
    yield Ended(hooks.clock(), total_steps(), "finished")


def _due(
    cadence: Cadence, hooks: Hooks, step: int, last: bool
) -> list[Callable[[int], Iterator[Event]]]:
    """Return evaluation, CORE and sampling, where they are due after a step."""
    optional = (
        (cadence.eval_every, hooks.evaluate),
        (cadence.core_every, hooks.core),
        (cadence.sample_every, hooks.sample),
    )
    return [activity for every, activity in optional if every and (last or step % every == 0)]


def _perform(
    activities: list[Callable[[int], Iterator[Event]]], step: int, stop: ShouldStop, last: bool
) -> Generator[Event, None, tuple[MlxchatError | None, bool]]:
    """Evaluate, measure CORE and sample; ``stop`` can cut this short, except after the last step.

    Returns:
        The error if one of them fails, and whether the evaluation is the best so far.
    """
    best = False
    try:
        for activity in activities:
            events = activity(step) if last else _until_stopped(activity(step), stop)
            for event in events:
                best |= isinstance(event, Evaluated) and event.best
                yield event
    except MlxchatError as error:
        return error, best
    return None, best


def _finish(
    pending: Pending, timed_from: float, ended: float | None, clock: Clock, shards: int
) -> Iterator[Event]:
    """Wait for a step to end, yield its result, and raise `NotFiniteError` if it is not finite.

    It took from ``timed_from`` until it ``ended``, or until now if that is not known.
    """
    yield from pending.news
    loss, norm, learning_rate = pending.read()
    cursor = pending.state.cursor
    seconds = (clock.seconds() if ended is None else ended) - timed_from
    yield Stepped(
        clock(),
        pending.step,
        loss=loss,
        learning_rate=learning_rate,
        gradient_norm=norm,
        seconds=seconds,
        position=Position(cursor.epoch, cursor.shard, shards),
        memory=memory_use(),
        waited=pending.waited,
    )
    check_numbers({"loss": loss, "gradient norm": norm}, pending.step, cursor)


def _until_stopped(events: Iterator[Event], stop: ShouldStop) -> Iterator[Event]:
    with suppress(Stopped):
        for event in events:
            yield event
            if stop():
                return


# ==== A step =====================================================================================

Draw = Callable[[], list[Batch]]
"""Returns the batches of a step, or the first of an evaluation; it may wait for a shard."""


MicroBatch = tuple[mx.array, mx.array, mx.array | None]
"""Ids and targets, both (B, T), and the weights of the rows' losses, (B,), if they have any."""


@dataclass(frozen=True)
class StepParts:
    """Everything that a run's optimizer steps are computed with."""

    model: GPT
    optimizer: MuonAdamW
    batches: Iterator[Batch]
    rates: Callable[[int], Rates]  # by the number of steps done
    plan: BatchPlan
    grad_clip: float  # largest gradient norm; 0: no limit
    dropout: float = 0.0
    seed: int = 0  # decides, with the number of the step, what dropout zeroes
    world: World = ALONE  # each rank computes with its own rows of every step
    draw: Callable[[int, Draw], list[Batch]] = lambda number, draw: draw()  # when all ranks can
    # Whether each rank makes batches of its own, once all know of the step; or reads all ranks'.
    own_batches: bool = False
    news: Callable[[], Sequence[Event]] = lambda: ()  # what there is to tell of a step's batches

    def keys(self, number: int) -> list[mx.array | None]:
        """Return what decides about dropout in each micro-batch of a step; None without it."""
        own = self.own_plan.accumulation
        if not self.dropout:
            return [None] * own
        of_step = mx.random.key((self.seed << 32) + number)
        of_all = [*mx.random.split(of_step, own * self.world.size)]
        return of_all[self.world.rank :: self.world.size]

    @property
    def own_plan(self) -> BatchPlan:
        """The division of this rank's rows of a step."""
        return self.plan.of_each(self.world.size)

    def next_batches(self, number: int) -> list[Batch]:
        """Return the batches of a step, which all ranks make."""
        if self.own_batches:
            self.draw(number, list)  # what ranks make of their own, they make once all know of it
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
        shares, gradients = list[mx.array](), Arrays()  # of the loss, each a scalar
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
        gradients[SHARES] = mx.stack(shares)  # by the same way to the other ranks
        gradients = world.sum(gradients, world.sent_as)
        of_loss = gradients.pop(SHARES)
        rates = parts.rates(number - 1)
        norm = optimizer.update(model, gradients, rates, parts.grad_clip, plan.streams)
        del gradients  # so that the update can reuse their memory
        metrics = mx.concatenate([mx.stack([norm, rates.shown]), of_loss])
        mx.async_eval(model.parameters(), optimizer.state, metrics)
        return Pending(number, metrics, batches[-1].state, world.seconds_waited(), parts.news())

    return launch


def _divisor(batches: Sequence[Batch]) -> int:
    """Return by what the sum of a step's losses is divided: their number, if they count alike."""
    if any(batch.weights is not None for batch in batches):
        return 1
    return max(1, sum(int((batch.targets >= 0).sum()) for batch in batches))
