"""The training loop, the same for every stage: it yields what happens and displays nothing.

`train` decides the order: steps, evaluations, samples, checkpoints, the end. It knows nothing of
models; it calls a function that launches a step, which `compile_step` makes of a `TrainingStep`,
and the `Hooks` of the run. The loss of a step is read while the next one runs, so that the device
never waits.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from mlxchat.data.loader import Batch, LoaderState, Stopped
from mlxchat.errors import MlxchatError
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.optim.gradients import compile_gradients
from mlxchat.optim.optimizer import MATRIX, MuonAdamW, Rates
from mlxchat.plan.memory import BatchPlan
from mlxchat.runtime import memory_use, mx
from mlxchat.telemetry.events import Clock, Ended, Event, Position, Stepped
from mlxchat.train.divergence import check_numbers

# ==== The loop ===================================================================================

ShouldStop = Callable[[], bool]  # asked often: save and end now?


@dataclass(frozen=True)
class Pending:
    """A step under way on the device."""

    step: int
    metrics: mx.array  # (3,): loss, gradient norm, learning rate of the matrices
    state: LoaderState  # after the step's last batch


Launch = Callable[[int], Pending]
"""Starts the step of that number, and raises `Stopped` if asked to stop before it is complete."""


@dataclass(frozen=True)
class Cadence:
    """Steps between evaluations, samples and checkpoints; 0: never.

    The last step is always saved, and evaluated and sampled unless the cadence is 0.
    """

    eval_every: int = 0
    sample_every: int = 0
    save_every: int = 0


def nothing(*_: object) -> Iterator[Event]:
    """Yield no event: the hook of a run that does not evaluate, sample or save."""
    return iter(())


@dataclass(frozen=True)
class Hooks:
    """The activities of a run between steps. Each is given the number of steps done, and yields its
    events; ``stop`` is asked often whether to save and end.
    """

    clock: Clock
    evaluate: Callable[[int], Iterator[Event]] = nothing
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
    shards: int = 1,
) -> Iterator[Event]:
    """Train from ``step`` to the last one, or until asked to stop.

    If it is asked to stop, or data cannot be read, the last complete step is saved first.

    Args:
        launch: starts a step.
        total_steps: returns the number of the last step. It may change after any event, but not to
            a step that has been launched before.
        step: the number of steps done so far.
        evaluated: whether that step has been evaluated already.
        shards: training shards, for the position that each `Stepped` tells.

    Raises:
        MlxchatError: data cannot be read.
        NotFiniteError: the loss or gradient norm of a step is NaN or infinite; neither that step
            nor a later one has been saved.
    """
    if cadence.eval_every and step % cadence.eval_every == 0 and not evaluated:
        yield from _until_stopped(hooks.evaluate(step), hooks.stop)

    latest: Pending | None = None  # the last step launched
    finished = True  # whether its `Stepped` has been yielded
    saved, started = step, hooks.clock()
    while step < total_steps():
        try:
            current = launch(step + 1)
        except (Stopped, MlxchatError) as error:
            if latest and not finished:
                yield from _finish(latest, started, hooks.clock, shards)
            if latest and latest.step > saved:
                yield from hooks.save(latest.step, latest.state)
            if not isinstance(error, Stopped):
                raise
            yield Ended(hooks.clock(), step, "interrupted")
            return
        if latest and not finished:
            yield from _finish(latest, started, hooks.clock, shards)
            started = hooks.clock()
        latest, finished = current, False
        step = current.step

        last = step == total_steps()
        activities = _due(cadence, hooks, step, last)
        saving = last or (cadence.save_every and step % cadence.save_every == 0)
        if not (saving or activities):
            continue
        yield from _finish(current, started, hooks.clock, shards)
        finished = True
        failure = yield from _perform(activities, step, hooks.stop, last)
        if saving or failure:
            yield from hooks.save(step, current.state)
            saved = step
        if failure:
            raise failure
        started = hooks.clock()
    yield Ended(hooks.clock(), total_steps(), "finished")


def _due(
    cadence: Cadence, hooks: Hooks, step: int, last: bool
) -> list[Callable[[int], Iterator[Event]]]:
    """Return evaluation and sampling, where they are due after a step."""
    optional = (cadence.eval_every, hooks.evaluate), (cadence.sample_every, hooks.sample)
    return [activity for every, activity in optional if every and (last or step % every == 0)]


def _perform(
    activities: list[Callable[[int], Iterator[Event]]], step: int, stop: ShouldStop, last: bool
) -> Generator[Event, None, MlxchatError | None]:
    """Evaluate and sample, and return the error of one that fails; all but the last step's may be
    cut short.
    """
    try:
        for activity in activities:
            yield from activity(step) if last else _until_stopped(activity(step), stop)
    except MlxchatError as error:
        return error
    return None


def _finish(pending: Pending, started: float, clock: Clock, shards: int) -> Iterator[Event]:
    """Wait for a step to end, yield its result, and raise `NotFiniteError` if it is not finite."""
    loss, norm, learning_rate = np.array(pending.metrics).tolist()
    cursor = pending.state.cursor
    now = clock()
    yield Stepped(
        now,
        pending.step,
        loss=loss,
        learning_rate=learning_rate,
        gradient_norm=norm,
        seconds=now - started,
        position=Position(cursor.epoch, cursor.shard, shards),
        memory=memory_use(),
    )
    check_numbers({"loss": loss, "gradient norm": norm}, pending.step, cursor)


def _until_stopped(events: Iterator[Event], stop: ShouldStop) -> Iterator[Event]:
    with suppress(Stopped):
        for event in events:
            yield event
            if stop():
                return


# ==== A step =====================================================================================


@dataclass(frozen=True)
class TrainingStep:
    """The parts that optimizer steps are computed with."""

    model: GPT
    optimizer: MuonAdamW
    batches: Iterator[Batch]
    rates: Callable[[int], Rates]  # by the number of steps done
    plan: BatchPlan
    grad_clip: float  # largest gradient norm; 0: no limit


class Compile(Protocol):
    """The type of `compile_step`, for functions that take another one in tests."""

    def __call__(self, step: TrainingStep, stop: ShouldStop = ...) -> Launch:
        """Make the function that launches a step."""


def compile_step(step: TrainingStep, stop: ShouldStop = lambda: False) -> Launch:
    """Make the function that starts an optimizer step on the device without waiting for its end.

    Whatever changes from step to step is an array. ``stop`` is asked before each micro-batch; if it
    says so, the function raises `Stopped` and the model is what it was before the step.
    """
    model, optimizer, plan = step.model, step.optimizer, step.plan

    accumulate = compile_gradients(model, plan.chunk_rows, plan.grad_checkpoint)

    def launch(number: int) -> Pending:
        batches = list(islice(step.batches, plan.accumulation))
        count = mx.array(max(1, sum(int((batch.targets >= 0).sum()) for batch in batches)))
        loss, gradients = mx.array(0.0), Arrays()
        for batch in batches:
            if stop():
                raise Stopped
            parameters, before = model.named_parameters(), loss
            ids, targets = mx.array(batch.ids), mx.array(batch.targets)
            loss, gradients = accumulate(parameters, ids, targets, count, loss, gradients)
            mx.async_eval(loss, gradients)
            mx.eval(before)  # no more than one micro-batch under way
        rates = step.rates(number - 1)
        norm = optimizer.update(model, gradients, rates, step.grad_clip)
        del gradients  # so that the update can reuse their memory
        metrics = mx.stack([loss, norm, rates.learning[MATRIX]])
        mx.async_eval(model.parameters(), optimizer.state, metrics)
        return Pending(number, metrics, batches[-1].state)

    return launch
