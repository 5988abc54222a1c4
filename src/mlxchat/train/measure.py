"""The memory and speed of this machine, or of all ranks, measured on synthetic data."""

from itertools import repeat
from statistics import median
from typing import get_args

import numpy as np

from mlxchat import openblas, system
from mlxchat.autotune import Way, fastest
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.recipes import ENDLESS, Text
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.loss import FASTEST_CHUNK_ROWS
from mlxchat.optim.gradients import compile_gradients
from mlxchat.optim.optimizer import MuonAdamW, Rates
from mlxchat.plan.budget import Measure, budgeted_plan
from mlxchat.plan.estimate import UTILISATION
from mlxchat.plan.memory import Resources, ScoresHeld
from mlxchat.plan.plan import Plan
from mlxchat.runtime import compute_dtype, machine, matmul_flops, mx, spare_memory
from mlxchat.streams import STREAMS, one_thread_each
from mlxchat.telemetry.clock import Timer
from mlxchat.train.step import Compile, StepParts, compile_step
from mlxchat.train.world import ALONE, Act, World

MODEL_SEED = 0
MOMENTUM = 0.95
BUDGET_SHARE, LONGEST_SECONDS = 0.05, 60.0  # the most of a budget that is spent measuring
COUNTED_STEPS = 5  # the maximum number of steps timed for a plan
MICRO_BATCHES = 4  # the maximum timed of a step; more of them take as long each
SCORES_HELD: dict[str, ScoresHeld] = {  # by backend; Metal's kernel takes no mask in training
    "cpu": "all",
    "cuda": "none",
    "metal": "windows",
}
# Tokens that take as long as summing the gradients and launching the kernels of a micro-batch. A
# large GPU also leaves some of itself idle with few rows: MEMORY.md's figures of an H100 come to
# 3,400. Macs' are not measured; the sums, by the bandwidth of their memory, are worth about 100.
MICRO_BATCH_TOKENS = {"cpu": 256, "cuda": 3400, "metal": 256}


def resources(dtype: str = "auto") -> Resources:
    """Return the means that this machine has for training in a precision now."""
    here = machine()
    return Resources(
        memory=spare_memory(),
        value_bytes=compute_dtype(dtype).size,
        scores_held=SCORES_HELD[here.backend],
        chunk_rows=FASTEST_CHUNK_ROWS[here.backend],
        micro_batch_tokens=MICRO_BATCH_TOKENS[here.backend],
        streams=fastest_streams(),
    )


def resources_of_all(world: World, dtype: str = "auto") -> Resources:
    """Return the means that every rank has, from which rank 0 plans."""
    if world.alone:
        return resources(dtype)
    world.announce(Act.RESOURCES)
    return least_resources(world, dtype)


def least_resources(world: World, dtype: str = "auto") -> Resources:
    """Return the least that any rank has for training; all ranks call it at the same time.

    Ranks on one machine share its memory, but for NVIDIA's GPUs, which have their own.
    """
    own = resources(dtype)
    kinds = get_args(ScoresHeld)
    shares_memory = machine().backend != "cuda"
    name = system.identity() if shares_memory else f"{system.identity()}, rank {world.rank}"
    machines = world.all_gather_texts(name)
    row = [own.memory, own.value_bytes, kinds.index(own.scores_held), own.streams]
    memory, value_bytes, held, streams = world.all_gather(row).T
    shares = [
        int(free) // machines.count(each) for free, each in zip(memory, machines, strict=True)
    ]
    rank = shares.index(min(shares))
    sharing = machines.count(machines[rank])
    spared_by = f"the machine of rank {rank}"
    return own._replace(
        memory=shares[rank],
        value_bytes=int(value_bytes.max()),
        scores_held=kinds[int(held.max())],
        streams=int(streams.min()),
        devices=len(set(machines)),
        spared_by=f"{spared_by}, for each of its {sharing} ranks," if sharing > 1 else spared_by,
    )


# ==== The fastest number of streams ==============================================================

TRIAL = GPTConfig(sequence_len=256, vocab_size=8192, n_layer=1, n_head=2, n_kv_head=2, n_embd=256)
TRIAL_ROWS = 2


def fastest_streams() -> int:
    """Return on how many streams the gradients of a small network are computed fastest here.

    It is 1 but on CPUs whose cores can have a stream each.
    """
    threads = openblas.threads()
    if machine().backend != "cpu" or threads < STREAMS:
        return 1
    question = f"streams for training on {threads} threads"
    return STREAMS if fastest(question, {"one": _trial(1), "two": _trial(STREAMS)}) == "two" else 1


def _trial(streams: int) -> Way:
    """Return a function of the gradients of a new network, computed on so many streams."""
    model = GPT.new(TRIAL, MODEL_SEED)
    accumulate = compile_gradients(model, streams=streams)

    def gradients() -> list[mx.array]:
        ids = mx.arange(TRIAL_ROWS * TRIAL.sequence_len).reshape(TRIAL_ROWS, -1)
        with one_thread_each(streams):
            _, found = accumulate(model.named_parameters(), ids, ids + 1, mx.array(ids.size), {})
            mx.eval(found)
        return list(found.values())

    return gradients


# ==== The plan for a time budget =================================================================


class Planner:
    """Plans a run for a time budget by measuring how fast this machine trains.

    Args:
        config: the settings, with a budget.
        resources: the machine's memory and device.
        started_at: when the budget started, by ``timer``.
        compile: makes the function that launches a step.
        text: how much text there is.
        world: the ranks, which take the measured steps together.
    """

    def __init__(
        self,
        config: PretrainConfig,
        resources: Resources,
        started_at: float,
        timer: Timer,
        compile: Compile = compile_step,
        text: Text = ENDLESS,
        world: World = ALONE,
    ) -> None:
        budget = float(config.budget_seconds or 0)
        seconds = min(BUDGET_SHARE * budget, LONGEST_SECONDS)
        self._config, self._resources = config, resources
        self.text = text
        self._measure = step_timer(seconds, timer, compile, config.dtype, world)
        self._left = lambda: started_at + budget - timer()
        speed = matmul_flops(dtype=compute_dtype(config.dtype))
        self._presumed = resources.devices * UTILISATION * speed
        self._speeds: dict[int, float] = {}  # FLOP/s by depth

    def plan(self, vocab_size: int | None) -> Plan:
        """Return the plan for what is left of the budget; what was measured counts again.

        Args:
            vocab_size: tokens in the tokenizer's vocabulary; None for those of the budget recipe.

        Raises:
            MlxchatError: as `budgeted_plan` does.
        """
        return budgeted_plan(
            self._config,
            vocab_size,
            self._resources,
            self._left,
            self._presumed,
            self._measure,
            self._speeds,
            self.text,
        )


def step_timer(
    seconds: float,
    timer: Timer,
    compile: Compile = compile_step,
    dtype: str = "auto",
    world: World = ALONE,
) -> Measure:
    """Return a function that measures the steps of one plan after another, each plan's once.

    It returns None once it has measured for ``seconds``. A measurement under way then ends with a
    whole step.

    Args:
        seconds: how long the function measures.
        timer: returns seconds since any origin.
        compile: makes the function that launches a step.
        dtype: the precision of the activations, as the setting names it.
        world: the ranks that take the steps together; this one is rank 0.
    """
    left = seconds
    measured: dict[tuple[GPTConfig, int], float] = {}

    def measure(plan: Plan) -> float | None:
        nonlocal left
        step, begun = (plan.model, plan.tokens_per_step), timer()
        if step not in measured and left > 0:
            world.rows(plan.rows_per_step)
            if not world.alone:
                world.announce(Act.MEASURE)
                world.all_gather_texts(plan.model_dump_json())
            measured[step] = step_seconds(plan, left / 2, timer, compile, dtype, world)
            left -= timer() - begun
        return measured.get(step)

    return measure


def step_seconds(
    plan: Plan,
    limit: float,
    timer: Timer,
    compile: Compile = compile_step,
    dtype: str = "auto",
    world: World = ALONE,
) -> float:
    """Train a new model for a few steps and return the seconds of the median one.

    The time of compilation does not count, and the model is discarded. All ranks call it at the
    same time; rank 0's limit counts.

    Args:
        limit: seconds after which no further step is started; two steps are always taken.
        timer: returns seconds since any origin.
        compile: makes the function that launches a step.
        dtype: the precision of the activations, as the setting names it.
        world: the ranks, each of which computes its rows.
    """
    started = timer()
    accumulation = min(plan.accumulation, MICRO_BATCHES * world.size)
    step = synthetic_step(plan.model_copy(update={"accumulation": accumulation}), dtype, world)
    launch = compile(step)
    computing, waiting = list[float](), list[float]()  # seconds of each step
    for number in range(1, COUNTED_STEPS + 2):  # the first one compiles
        begun = timer()
        pending = launch(number)
        mx.eval(pending.metrics, step.model.parameters(), step.optimizer.state)
        waiting.append(pending.waited or 0.0)
        computing.append(timer() - begun - waiting[-1])
        late = world.all_gather([timer() - started > limit])[0, 0]
        if number > 1 and late:
            break
    del launch, step
    mx.clear_cache()
    mx.reset_peak_memory()
    return median(computing[1:]) * plan.accumulation / accumulation + median(waiting[1:])


# ==== Training on synthetic data =================================================================


def synthetic_step(plan: Plan, dtype: str = "auto", world: World = ALONE) -> StepParts:
    """Return the steps of a new model, on one batch of random tokens again and again.

    The rates are constant, which makes no difference to the time of a step.
    """
    model = GPT.new(plan.model, MODEL_SEED, compute_dtype(dtype))
    shape = (plan.device_batch_size, plan.model.sequence_len)
    random = np.random.default_rng(MODEL_SEED)
    ids = random.integers(plan.model.vocab_size, size=shape, dtype=np.int32)

    def rates(_: int) -> Rates:
        learning = {group: mx.array(rate) for group, rate in plan.learning_rates.items()}
        return Rates(learning, mx.array(MOMENTUM), mx.array(plan.weight_decay))

    return StepParts(
        model=model,
        optimizer=MuonAdamW(model),
        batches=repeat(Batch(ids, np.roll(ids, -1, axis=1), LoaderState())),
        rates=rates,
        plan=plan,
        grad_clip=plan.grad_clip,
        dropout=plan.dropout,
        world=world,
    )
