"""The training loop, which is the same for every stage. It yields events and displays nothing.

`train` decides the order of steps, evaluations, samples and checkpoints, and when to stop. It knows
nothing about models: it calls a function that launches a step, such as
`mlxchat.train.step.compile_step` makes, and the run's `Hooks`. The loss of a step is read while the
next one runs, so the device never waits.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mlxchat.data.loader import LoaderState, Stopped
from mlxchat.errors import MlxchatError
from mlxchat.runtime import memory_use, mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Ended, Evaluated, Event, Position, Stepped
from mlxchat.train.divergence import check_numbers

ShouldStop = Callable[[], bool]  # polled; returns True to save and stop


@dataclass(frozen=True)
class Pending:
    """A step that has been launched on the device.

    Attributes:
        metrics: the gradient norm, the learning rate (`Rates.shown`) and, of each micro-batch, its
            share of the loss: (2 + accumulation,).
        state: the loader's state after the step's last batch.
        waited: seconds spent on summing gradients with other ranks; None for a single process.
        events: those about the step's data, yielded before the step's own event.
    """

    step: int
    metrics: mx.array
    state: LoaderState
    waited: float | None = None
    events: Sequence[Event] = ()

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

    steps = _Steps(launch, hooks.clock, shards, ahead, computes_at_launch)
    newest: Pending | None = None  # the step launched last
    saved_step = step
    while step < total_steps():
        try:
            newest = yield from steps.launch(step + 1)
        except (Stopped, MlxchatError) as error:
            if newest and newest.step > saved_step:
                yield from hooks.save(newest.step, newest.state)
            if not isinstance(error, Stopped):
                raise
            yield Ended(hooks.clock(), step, "interrupted")
            return
        step = newest.step

        last = step == total_steps()
        activities = _due(cadence, hooks, step, last)
        save_due = last or (cadence.save_every and step % cadence.save_every == 0)
        if not (save_due or activities):
            continue
        # These need the step's parameters: wait for it before the next one is launched.
        yield from steps.report()
        failure, best = yield from _perform(activities, step, hooks.stop, last)
        read_again = newest.state.cursor.epoch > 1
        if save_due or failure or (best and read_again and cadence.save_every):
            yield from hooks.save(step, newest.state)
            saved_step = step
        if failure:
            raise failure
        steps.restart_clock()  # activities do not count as training
    yield Ended(hooks.clock(), total_steps(), "finished")


class _Steps:
    """The steps of a run: each is launched, and its result is yielded once the next one runs.

    The arguments are those of `train`. The seconds of a step count from the end of the step before,
    or from `restart_clock`.
    """

    def __init__(
        self, launch: Launch, clock: Clock, shards: int, ahead: bool, computes_at_launch: bool
    ) -> None:
        self._launch, self._clock, self._shards = launch, clock, shards
        self._ahead, self._computes_at_launch = ahead, computes_at_launch
        self._unreported: Pending | None = None
        self._ended: float | None = None  # when that step was done, if it is known
        self._timed_from = clock.seconds()

    def launch(self, number: int) -> Generator[Event, None, Pending]:
        """Launch a step, then report the one before.

        Raises:
            Stopped, MlxchatError: it was not launched; the one before has been reported.
        """
        if self._unreported and not self._ahead:
            yield from self.report()
            self.restart_clock()
        try:
            pending = self._launch(number)  # while the device still computes the step before
            ended = self._clock.seconds() if self._computes_at_launch else None
        except (Stopped, MlxchatError):
            yield from self.report()
            raise
        yield from self.report()
        self._unreported, self._ended = pending, ended
        return pending

    def report(self) -> Iterator[Event]:
        """Wait for the newest step and yield its result, unless that has been done.

        Raises:
            NotFiniteError: its loss or gradient norm is NaN or infinite.
        """
        pending = self._unreported
        if pending is None:
            return
        yield from pending.events
        loss, norm, learning_rate = pending.read()
        cursor = pending.state.cursor
        seconds = self._end() - self._timed_from
        yield Stepped(
            self._clock(),
            pending.step,
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=norm,
            seconds=seconds,
            position=Position(cursor.epoch, cursor.shard, self._shards),
            memory=memory_use(),
            waited=pending.waited,
        )
        check_numbers({"loss": loss, "gradient norm": norm}, pending.step, cursor)
        self._unreported, self._timed_from = None, self._end()

    def restart_clock(self) -> None:
        """Count the seconds of the next step from now."""
        self._timed_from = self._clock.seconds()

    def _end(self) -> float:
        """Return when the newest step was done, or now if that is not known."""
        return self._clock.seconds() if self._ended is None else self._ended


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


def _until_stopped(events: Iterator[Event], stop: ShouldStop) -> Iterator[Event]:
    with suppress(Stopped):
        for event in events:
            yield event
            if stop():
                return
