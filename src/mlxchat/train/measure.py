"""What this machine has, and the plan of a run on it; for a time budget its speed is measured.

Training on random tokens, to see what its steps take: nothing is read, evaluated or saved.
"""

from itertools import pairwise, repeat
from statistics import median

import numpy as np

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.gpt import GPT
from mlxchat.model.loss import FASTEST_CHUNK_ROWS
from mlxchat.model.size import ScoresHeld
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.budget import budgeted_plan
from mlxchat.plan.estimate import UTILISATION
from mlxchat.plan.memory import Capacity
from mlxchat.plan.plan import Plan, plan
from mlxchat.runtime import machine, matmul_flops, mx, spare_memory
from mlxchat.telemetry.events import Clock
from mlxchat.train.loop import Run, compile_step

SEED = 0
MOMENTUM = 0.95


def random_model(plan: Plan) -> GPT:
    """A new model, its parameters drawn as for training."""
    return GPT.new(plan.model, SEED)


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
        optimizer=MuonAdamW(model),
        batches=repeat(Batch(ids, np.roll(ids, -1, axis=1), LoaderState())),
        rates=rates,
        total_steps=plan.num_iterations,
        accumulation=plan.accumulation,
        grad_clip=plan.grad_clip,
        grad_checkpoint=plan.grad_checkpoint,
        loss_rows=plan.loss_rows,
        clock=clock,
    )


SHARE, SECONDS = 0.05, 60.0  # of a budget, at most, for measuring
COUNTED_STEPS = 5  # of a plan, at most
MICRO_BATCHES = 4  # of a step, at most: more of them take as long each
SCORES_HELD: dict[str, ScoresHeld] = {  # by backend; Metal's kernel takes no mask in training
    "cpu": "all",
    "cuda": "none",
    "metal": "windows",
}


def capacity() -> Capacity:
    """Of this machine, as much as it can spare now."""
    here = machine()
    return Capacity(
        memory=spare_memory(),
        value_bytes=here.compute_dtype.size,
        scores_held=SCORES_HELD[here.backend],
        loss_rows=FASTEST_CHUNK_ROWS[here.backend],
    )


def planned(
    config: PretrainConfig, vocab_size: int, available: Capacity, begun: float, clock: Clock
) -> Plan:
    """The plan on this machine; for a time budget its speed is measured first.

    Args:
        vocab_size: of the tokenizer.
        available: what the machine has.
        begun: when the budget's time began to run, by ``clock``.

    Raises:
        MlxchatError: as of `plan` and `budgeted_plan`.
    """
    if config.budget_seconds is None:
        return plan(config, vocab_size, available)
    budget = float(config.budget_seconds)
    probe = Probe(min(SHARE * budget, SECONDS), clock)
    presumed = UTILISATION * matmul_flops()

    def left() -> float:
        return begun + budget - clock()

    return budgeted_plan(config, vocab_size, available, left, presumed, probe)


class Probe:
    """Measures plans, one after the other, until the time for it is used up.

    Args:
        seconds: for all measurements together. The one under way ends with a whole step.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._clock, self._deadline = clock, clock() + seconds

    def __call__(self, plan: Plan) -> float | None:
        """Seconds that one of the plan's steps takes, without compilation; None if time is up."""
        left = self._deadline - self._clock()
        if left <= 0:
            return None
        return step_seconds(plan, left / 2, self._clock)


def step_seconds(plan: Plan, limit: float, clock: Clock) -> float:
    """Train a new model of that plan for a few steps and forget it; the median step in seconds.

    Args:
        limit: seconds after which no further step is begun, one beside the first being counted.
        clock: seconds.
    """
    begun = clock()
    accumulation = min(plan.accumulation, MICRO_BATCHES)
    model = random_model(plan)
    run = random_run(model, plan.model_copy(update={"accumulation": accumulation}), clock)
    launch = compile_step(run)
    ends = []
    for step in range(1, COUNTED_STEPS + 2):  # the first one compiles
        facts = launch(step).facts
        mx.eval(facts, model.parameters(), run.optimizer.state)
        ends.append(clock())
        if step > 1 and ends[-1] - begun > limit:
            break
    took = median(b - a for a, b in pairwise(ends))
    del launch, run, model
    mx.clear_cache()
    mx.reset_peak_memory()
    return took * plan.accumulation / accumulation
