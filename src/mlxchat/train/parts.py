"""The parts of a run that every rank has: batches, rates, steps and evaluations."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

from mlxchat.data.documents import Documents
from mlxchat.data.loader import Batch, Loader, first_rows
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.optim import schedule
from mlxchat.optim.optimizer import Rates
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Event
from mlxchat.train.loop import Draw, ShouldStop, StepParts
from mlxchat.train.resume import TrainState
from mlxchat.train.stage import Stage


def never() -> bool:
    """Return False: nothing asks to stop."""
    return False


def opened_batches(
    stage: Stage[Any, Any], documents: Documents, state: TrainState, stop: ShouldStop = never
) -> Loader:
    """Open the loader of the training batches where the run is in the data."""
    return Loader(
        documents.training(state.loader.cursor),
        state.tokenizer,
        state.plan.device_batch_size,
        state.plan.model.sequence_len,
        state.loader,
        stop,
        stage.preparation(documents),
    )


def step_parts(
    stage: Stage[Any, Any],
    state: TrainState,
    batches: Iterator[Batch],
    draw: Callable[[int, Draw], list[Batch]] = lambda number, draw: draw(),
) -> StepParts:
    """Return the parts that the run's steps are computed with.

    Args:
        stage: the run's stage.
        state: what is trained; the rates follow its plan, which may change.
        batches: the batches of all ranks.
        draw: see `StepParts`.
    """
    plan = state.plan
    return StepParts(
        state.model,
        state.optimizer,
        batches,
        lambda step: rates(stage, state, step),
        plan,
        plan.grad_clip,
        plan.dropout,
        stage.config.seed,
        stage.world,
        draw,
    )


def rates(stage: Stage[Any, Any], state: TrainState, step: int) -> Rates:
    """Return learning rates, momentum and weight decay after ``step`` updates, as arrays."""
    plan = state.plan
    total = plan.num_iterations
    multiplier = schedule.learning_rate_multiplier(
        step, total, plan.warmup_steps, plan.warmdown_ratio, plan.final_lr_frac
    )
    decay = schedule.weight_decay_multiplier(plan.model.arch, step, total)
    return Rates(
        {group: mx.array(rate * multiplier) for group, rate in plan.learning_rates.items()},
        mx.array(stage.momentum(plan, step)),
        mx.array(plan.weight_decay * decay),
    )


class Evaluation:
    """Measures bits per byte of the first validation documents; each rank takes its batches.

    Args:
        stage: the run's stage.
        documents: its data.
        state: what is evaluated.
        draw: returns the first batch when all ranks have theirs: one may wait for its shard.
    """

    def __init__(
        self,
        stage: Stage[Any, Any],
        documents: Documents,
        state: TrainState,
        draw: Callable[[Draw], list[Batch]] = lambda draw: draw(),
    ) -> None:
        self._stage, self._documents, self._state, self._draw = stage, documents, state, draw
        in_chunks = partial(state.model.losses, chunk_rows=state.plan.chunk_rows)
        self._losses = mx.compile(in_chunks, inputs=state.model.state)

    def events(self, step: int, stop: ShouldStop = never) -> Iterator[Event]:
        """Evaluate after a step, yielding progress and, last, an `Evaluated` of all ranks.

        ``stop`` is asked while the loader is waited for; an evaluation that ranks share goes on.
        """
        plan, tokenizer, world = self._state.plan, self._state.tokenizer, self._stage.world
        rows, context = plan.device_batch_size, plan.model.sequence_len
        documents, preparation = self._documents.validation(), self._documents.preparation
        with Loader(
            documents, tokenizer, rows, context, stop=stop, preparation=preparation
        ) as batches:
            rest = first_rows(batches, plan.eval_rows)
            wanted = chain(self._draw(lambda: list(islice(rest, 1))), rest)
            limit = math.ceil(plan.eval_rows / rows)
            yield from bits_per_byte(
                self._losses,
                islice(wanted, world.rank, None, world.size),
                len(range(world.rank, limit, world.size)),
                tokenizer,
                step,
                self._stage.clock,
                lambda numbers: world.gather(numbers).sum(axis=0).tolist(),
            )
