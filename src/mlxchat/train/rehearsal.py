"""Training on random tokens, to see what its steps take: nothing is read, evaluated or saved."""

from itertools import repeat

import numpy as np

from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.gpt import GPT, initialise
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.plan import Plan
from mlxchat.runtime import machine, mx
from mlxchat.telemetry.events import Clock
from mlxchat.train.loop import Run

SEED = 0
MOMENTUM = 0.95


def random_model(plan: Plan) -> GPT:
    """A new model, its parameters drawn as for training."""
    model = GPT(plan.model, machine().compute_dtype)
    initialise(model, mx.random.key(SEED))
    return model


def random_run(model: GPT, plan: Plan, clock: Clock) -> Run:
    """The training of ``model`` on one batch of random tokens, again and again.

    Rates stay as they are in the plan: they change nothing in the time of a step.
    """
    shape = (plan.device_batch_size, plan.model.sequence_len)
    ids = np.random.default_rng(SEED).integers(plan.model.vocab_size, size=shape, dtype=np.int32)

    def rates(_: int) -> Rates:
        learning = {group: mx.array(rate) for group, rate in plan.learning_rates.items()}
        return Rates(learning, mx.array(MOMENTUM), mx.array(plan.weight_decay))

    return Run(
        model=model,
        optimizer=MuonAdamW(model.named_parameters(), plan.model.arch, model.dtype),
        batches=repeat(Batch(ids, np.roll(ids, -1, axis=1), LoaderState())),
        rates=rates,
        total_steps=plan.num_iterations,
        accumulation=plan.accumulation,
        grad_clip=plan.grad_clip,
        grad_checkpoint=plan.grad_checkpoint,
        loss_rows=plan.loss_rows,
        clock=clock,
    )
