"""What a run will take, before it is begun: numbers that follow from its plan and the machine."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from mlxchat.model.size import parameters
from mlxchat.plan.memory import AGAIN, Capacity
from mlxchat.plan.plan import Plan

UTILISATION = 0.35  # of a matrix product's speed, that training reaches

VocabularySource = Literal["vocab_size", "tokenizer", "default"]


class Room(NamedTuple):
    """Of memory, in bytes."""

    limit: int  # that training may take
    given: str | None  # how it was said; None where the machine sets it
    cache: int  # that may be kept for reuse
    machine: int


class Forecast(BaseModel):
    """A plan, and what it comes to on a machine; what is measured or estimated is roughly so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str
    saved_step: int | None  # where the run goes on; None: it begins
    vocabulary_from: VocabularySource
    plan: Plan
    parameters: dict[str, int]  # by group
    tokens: int
    total_flops: int
    memory: dict[str, int]  # bytes by component; "peak" of all but the cache
    memory_limit: int  # bytes that it may take
    memory_limit_given: str | None  # how it was said; None where the machine sets it
    machine_memory: int  # bytes
    device: str
    matmul_flops: float  # FLOP/s of a matrix product
    utilisation: float  # of those
    seconds: float  # for the steps that are left


def forecast(
    plan: Plan,
    tag: str,
    vocabulary_from: VocabularySource,
    saved_step: int | None,
    capacity: Capacity,
    room: Room,
    device: str,
    matmul_flops: float,
) -> Forecast:
    """Estimate what a plan takes; the time by the steps measured, where a time budget had them.

    Args:
        saved_step: where the run goes on; None where it begins.
        matmul_flops: FLOP/s of a matrix product on ``device``.
    """
    step_flops = plan.flops_per_token * plan.tokens_per_step
    computed = step_flops * (1 + AGAIN * plan.grad_checkpoint)
    step_seconds = plan.costs.step if plan.costs else computed / (UTILISATION * matmul_flops)
    return Forecast(
        tag=tag,
        saved_step=saved_step,
        vocabulary_from=vocabulary_from,
        plan=plan,
        parameters=parameters(plan.model),
        tokens=plan.tokens,
        total_flops=step_flops * plan.num_iterations,
        memory={**plan.memory(capacity), "cache": room.cache},
        memory_limit=room.limit,
        memory_limit_given=room.given,
        machine_memory=room.machine,
        device=device,
        matmul_flops=matmul_flops,
        utilisation=step_flops / step_seconds / matmul_flops,
        seconds=(plan.num_iterations - (saved_step or 0)) * step_seconds,
    )
