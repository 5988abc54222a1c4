"""Optimizer steps by themselves, without the rest of a run."""

import numpy as np

from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.gpt import Arrays
from mlxchat.optim.adamw import AdamW
from mlxchat.optim.optimizer import PARAM_GROUPS, MuonAdamW, Rates, group_of
from mlxchat.plan.memory import BatchPlan
from mlxchat.runtime import mx
from mlxchat.train.loop import Pending
from mlxchat.train.step import StepParts
from support.cases import Case

STEPS, ROWS, LENGTH = 2, 4, 24


def rows(case: Case) -> np.ndarray:
    """Ids of all steps and, one place later, targets, none of them ignored."""
    shape = (STEPS * ROWS, LENGTH + 1)
    return np.random.default_rng(5).integers(case.config.vocab_size, size=shape, dtype=np.int32)


def prepare(case: Case, micro_rows: int = ROWS, grad_clip: float = 0.0) -> StepParts:
    """Steps of ROWS rows, ``micro_rows`` of them at once; Muon without momentum."""
    model, ids = case.model(), rows(case)
    learning = {group.name: mx.array(0.01) for group in PARAM_GROUPS[case.config.arch]}
    rates = Rates(learning, momentum=mx.array(0.0), weight_decay=mx.array(0.0))
    micro_batches = ids.reshape(-1, micro_rows, LENGTH + 1)
    return StepParts(
        model=model,
        optimizer=MuonAdamW(model),
        batches=(Batch(ids[:, :-1], ids[:, 1:], LoaderState()) for ids in micro_batches),
        rates=lambda _: rates,
        plan=BatchPlan(
            device_batch_size=micro_rows, accumulation=ROWS // micro_rows, chunk_rows=16
        ),
        grad_clip=grad_clip,
    )


def loss_and_norm(pending: Pending) -> tuple[float, float]:
    loss, norm, _ = pending.read()
    return loss, norm


def optimized_gradients(step: StepParts) -> Arrays:
    """What the optimizer was given in the first step, from the moments that it made of it."""
    state, gradients = step.optimizer.state, {}
    for name in step.model.named_parameters():
        rule = group_of(step.model.config.arch, name).rule
        if isinstance(rule, AdamW):
            gradients[name] = state[f"adamw.{name}.m"] / (1 - rule.betas[0])
        else:
            gradients[name] = state[f"muon.{name}"]
    return gradients


def joint_norm(gradients: Arrays) -> float:
    return sum(g.square().sum().item() for g in gradients.values()) ** 0.5
