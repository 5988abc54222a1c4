"""The training loop, the same for every stage: it yields what happens and shows nothing.

A stage differs in the `Run` it passes. Forward, backward and accumulation are compiled as one
function and the update as another; whatever changes from step to step is an array. A step's loss is
read while the next step runs.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mlxchat.data.loader import Batch, LoaderState, Stopped
from mlxchat.errors import MlxchatError
from mlxchat.model.gpt import GPT
from mlxchat.optim.gradients import compile_gradients
from mlxchat.optim.optimizer import MATRIX, Arrays, MuonAdamW, Rates
from mlxchat.runtime import memory_use, mx
from mlxchat.telemetry.events import Ended, Event, Position, Stepped
from mlxchat.train.divergence import check_numbers


def nothing(*_: object) -> Iterator[Event]:
    """What a run does where it evaluates, samples or saves nothing."""
    return iter(())


@dataclass
class Run:
    """What the loop needs; by default it only trains.

    ``step`` counts the updates made. A cadence of 0 steps is never due. The last step is evaluated
    and sampled, where there is a cadence, and always saved. ``total_steps`` may be changed whenever
    an event has been yielded, to more steps than that event tells of.
    """

    model: GPT
    optimizer: MuonAdamW
    batches: Iterator[Batch]
    rates: Callable[[int], Rates]  # by the number of updates made
    total_steps: int
    accumulation: int  # micro-batches in a step
    grad_clip: float  # joint norm; 0 for none
    grad_checkpoint: bool  # compute each block's activations again in the backward pass
    loss_rows: int  # positions in a chunk of the loss, at least
    clock: Callable[[], float]
    shards: int = 1
    step: int = 0
    evaluated: bool = False  # whether ``step`` has been evaluated already
    eval_every: int = 0
    sample_every: int = 0
    save_every: int = 0
    evaluate: Callable[[int], Iterator[Event]] = nothing
    sample: Callable[[int], Iterator[Event]] = nothing
    save: Callable[[int, LoaderState], Iterator[Event]] = nothing
    stop: Callable[[], bool] = lambda: False  # asked again and again: save and end?


@dataclass(frozen=True)
class Launched:
    """A step under way on the device, and where in the data it ends."""

    step: int
    facts: mx.array  # loss, gradient norm, learning rate of the matrices
    state: LoaderState


def train(run: Run) -> Iterator[Event]:
    """Train from ``run.step`` to ``run.total_steps``, or until asked to stop.

    Asked to stop, or without data to train on or to evaluate with, it saves the last whole step
    first.

    Raises:
        MlxchatError: data cannot be had.
        NotFiniteError: a step's loss or gradient norm is NaN or infinite; neither that step nor one
            after it was saved.
    """
    launch = compile_step(run)
    if not run.evaluated and run.eval_every and run.step % run.eval_every == 0:
        yield from _unless_stopped(run, run.evaluate(run.step))
    latest: Launched | None = None  # the last step launched
    untold: Launched | None = None  # it too, where it is still to be told of
    saved = run.step
    begun = run.clock()
    step = run.step
    while step < run.total_steps:
        step += 1
        try:
            current = launch(step)
        except (Stopped, MlxchatError) as reason:
            if untold:
                yield from _landed(run, untold, begun)
            if latest and latest.step > saved:
                yield from run.save(latest.step, latest.state)
            if not isinstance(reason, Stopped):
                raise
            yield Ended(run.clock(), step - 1, "interrupted")
            return
        if untold:
            yield from _landed(run, untold, begun)
            begun = run.clock()
        latest = untold = current
        last = step == run.total_steps
        activities = _activities(run, step)
        saving = last or (run.save_every and step % run.save_every == 0)
        if not (saving or activities):
            continue
        yield from _landed(run, current, begun)
        untold = None
        failure = None
        try:
            for activity in activities:
                yield from activity(step) if last else _unless_stopped(run, activity(step))
        except MlxchatError as error:
            failure = error
        if saving or failure:
            yield from run.save(step, current.state)
            saved = step
        if failure:
            raise failure
        begun = run.clock()
    yield Ended(run.clock(), run.total_steps, "finished")


def _activities(run: Run, step: int) -> list[Callable[[int], Iterator[Event]]]:
    """Evaluation and sampling, where they are due after a step."""
    last = step == run.total_steps
    cadences = (run.eval_every, run.evaluate), (run.sample_every, run.sample)
    return [activity for every, activity in cadences if every and (last or step % every == 0)]


def compile_step(run: Run) -> Callable[[int], Launched]:
    """The function that starts one optimizer step on the device and does not wait for its end.

    It raises `Stopped` between micro-batches when asked to stop, the step then not done at all.
    """
    model, optimizer = run.model, run.optimizer

    accumulate = compile_gradients(model, run.loss_rows, run.grad_checkpoint)

    def launch(step: int) -> Launched:
        batches = list(islice(run.batches, run.accumulation))
        count = mx.array(max(1, sum(int((batch.targets >= 0).sum()) for batch in batches)))
        loss, gradients = mx.array(0.0), Arrays()
        for batch in batches:
            if run.stop():
                raise Stopped
            before, ids, targets = loss, mx.array(batch.ids), mx.array(batch.targets)
            loss, gradients = accumulate(
                model.named_parameters(), ids, targets, count, loss, gradients
            )
            mx.async_eval(loss, gradients)
            mx.eval(before)  # one micro-batch under way, no more
        rates = run.rates(step - 1)
        norm = optimizer.update(model, gradients, rates, run.grad_clip)
        del gradients  # with what was before the update: its memory is used again in it
        facts = mx.stack([loss, norm, rates.learning[MATRIX]])
        mx.async_eval(model.parameters(), optimizer.state, facts)
        return Launched(step, facts, batches[-1].state)

    return launch


def _landed(run: Run, launched: Launched, begun: float) -> Iterator[Event]:
    """Wait for a step, tell what it came to, and go no further where that is no number."""
    loss, norm, learning_rate = np.array(launched.facts).tolist()
    cursor = launched.state.cursor
    now = run.clock()
    yield Stepped(
        now,
        launched.step,
        loss=loss,
        learning_rate=learning_rate,
        gradient_norm=norm,
        seconds=now - begun,
        position=Position(cursor.epoch, cursor.shard, run.shards),
        memory=memory_use(),
    )
    check_numbers({"loss": loss, "gradient norm": norm}, launched.step, cursor)


def _unless_stopped(run: Run, events: Iterator[Event]) -> Iterator[Event]:
    with suppress(Stopped):
        for event in events:
            yield event
            if run.stop():
                return
