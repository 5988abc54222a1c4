"""Estimates the time, memory and FLOPs of a run before it starts."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from mlxchat.model.size import parameters
from mlxchat.plan.division import RECOMPUTE_COST
from mlxchat.plan.memory import Resources, training_bytes
from mlxchat.plan.plan import Plan

UTILISATION = 0.35  # the share of a matrix product's speed that training reaches

VocabularySource = Literal["vocab_size", "tokenizer", "default"]


class Room(NamedTuple):
    """The memory around a run."""

    given: str | None  # the limit as the settings give it; None where the machine sets it
    cache: int  # bytes that MLX may keep for reuse
    machine: int  # bytes


class Estimate(BaseModel):
    """A plan, and the time and memory it needs on a machine. Times and sizes are approximate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str
    saved_step: int | None  # where the run resumes; None for a new run
    vocabulary_from: VocabularySource
    plan: Plan
    parameters: dict[str, int]  # by group
    tokens: int
    total_flops: int
    memory: dict[str, int]  # bytes by component; "peak" of all but the cache
    memory_limit: int  # bytes that it may take
    memory_limit_given: str | None  # as the settings give it; None where the machine sets it
    machine_memory: int  # bytes
    device: str
    matmul_flops: float  # FLOP/s of a matrix product
    utilisation: float  # the share of that speed which training is expected to reach
    seconds: float  # for the steps that are left
    ranks: int  # processes that train together; memory is that of each


def estimate(
    plan: Plan,
    tag: str,
    vocabulary_from: VocabularySource,
    saved_step: int | None,
    resources: Resources,
    room: Room,
    device: str,
    matmul_flops: float,
    ranks: int = 1,
) -> Estimate:
    """Estimate what a plan takes. Its time follows from the steps measured for a time budget, if
    there is one.

    Args:
        saved_step: where the run resumes; None for a new run.
        matmul_flops: FLOP/s of a matrix product on ``device``, or on those of all ranks together.
        ranks: processes that train together.
    """
    step_flops = plan.flops_per_token * plan.tokens_per_step
    computed = step_flops * (1 + RECOMPUTE_COST * plan.grad_checkpoint)
    step_seconds = plan.costs.step if plan.costs else computed / (UTILISATION * matmul_flops)
    return Estimate(
        tag=tag,
        saved_step=saved_step,
        vocabulary_from=vocabulary_from,
        plan=plan,
        parameters=parameters(plan.model),
        tokens=plan.tokens,
        total_flops=step_flops * plan.num_iterations,
        memory={
            **training_bytes(plan.model, plan.per_rank(ranks), resources, plan.adapter),
            "cache": room.cache,
        },
        memory_limit=plan.memory_limit or resources.memory,
        memory_limit_given=room.given,
        machine_memory=room.machine,
        device=device,
        matmul_flops=matmul_flops,
        utilisation=step_flops / step_seconds / matmul_flops,
        seconds=(plan.num_iterations - (saved_step or 0)) * step_seconds,
        ranks=ranks,
    )
