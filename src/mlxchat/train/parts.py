"""The parts of a run's steps that every rank has: batches and rates."""

from collections.abc import Callable
from typing import Any

from mlxchat.data.loader import Batch
from mlxchat.optim import schedule
from mlxchat.optim.optimizer import Rates
from mlxchat.runtime import mx
from mlxchat.train.batches import Batches
from mlxchat.train.resume import TrainState
from mlxchat.train.stage import Stage
from mlxchat.train.step import Draw, StepParts


def step_parts(
    stage: Stage[Any, Any],
    state: TrainState,
    batches: Batches,
    draw: Callable[[int, Draw], list[Batch]] = lambda number, draw: draw(),
) -> StepParts:
    """Return the parts that the run's steps are computed with.

    Args:
        stage: the run's stage.
        state: what is trained; the rates follow its plan, which may change.
        batches: the batches of all ranks, or of this one if the stage draws its own.
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
        stage.on_policy,
        batches.take_events,
    )


def rates(stage: Stage[Any, Any], state: TrainState, step: int) -> Rates:
    """Return learning rates, momentum and weight decay after ``step`` updates, as arrays."""
    plan = state.plan
    total = plan.num_iterations
    multiplier = stage.learning_rate_multiplier(plan, step)
    decay = schedule.weight_decay_multiplier(plan.model.arch, step, total)
    return Rates(
        {group: mx.array(rate * multiplier) for group, rate in plan.learning_rates.items()},
        mx.array(stage.momentum(plan, step)),
        mx.array(plan.weight_decay * decay),
    )
