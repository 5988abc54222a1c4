"""Measures how fast this machine trains and generates, on random weights and random tokens.

The training step is the one that `mlxchat train` runs, and decoding is that of `mlxchat chat`, so
the figures are those a user gets. Speeds are medians; the speed of a plain matrix product, measured
alongside, shows what the hardware can reach.
"""

import platform
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from itertools import pairwise
from statistics import median

import numpy as np
from pydantic import BaseModel, ConfigDict

from mlxchat import __version__, runtime
from mlxchat.autotune import Tuned, tuned
from mlxchat.config.inference import BenchConfig
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.counts import counted
from mlxchat.engine.cache import KVCache
from mlxchat.engine.generate import generate, prefill
from mlxchat.errors import MemoryLimitError
from mlxchat.model.gpt import GPT
from mlxchat.plan.memory import Resources
from mlxchat.plan.plan import Plan, plan
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import Clock
from mlxchat.telemetry.events import Progressed, Report
from mlxchat.train.measure import resources, synthetic_step
from mlxchat.train.step import StepParts, compile_step


class Facts(BaseModel):
    """Base class of the results, which are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(Facts):
    """The machine and the software that the benchmark ran on."""

    device: str
    backend: str
    compute_dtype: str
    memory: int  # bytes that the backend can address
    peak_flops: float | None  # FLOP/s of the chip; None where unknown
    matmul_flops: float  # FLOP/s of a matrix product, measured
    mlxchat: str
    mlx: str
    python: str
    system: str


class TrainingSpeed(Facts):
    """The speed of whole training steps: forward, backward, clipping, update."""

    startup_seconds: float  # from the start of the command to that of the first step
    first_step_seconds: float  # compilation included
    step_seconds: list[float]  # each counted step
    tokens_per_step: int
    tokens_per_second: float  # of the median step
    flops_per_second: float  # counted from the model, not the hardware
    matmul_share: float  # as a share of matmul_flops
    mfu: float | None  # as a share of peak_flops; None where that is unknown
    peak_memory: int  # bytes, as MLX's allocator counts them


class Generation(Facts):
    """The speed of generating one sequence with a KV cache."""

    prefill_tokens: int  # prompt length when measuring prefill
    prefill_tokens_per_second: float
    prompt_tokens: int  # prompt length when measuring decode
    decoded_tokens: int  # the most per round
    tokens_per_second: float  # decoding greedily


class Bench(Facts):
    """All results of a benchmark."""

    config: BenchConfig
    parameters: int
    flops_per_token: int  # forward and backward
    environment: Environment
    training: TrainingSpeed
    generation: Generation
    ways: dict[str, Tuned]  # the ways that were found to be the fastest, by question


UNCOUNTED_STEPS = 2  # the first compiles, the second starts with no other step under way
LEAST_COUNTED_STEPS = 3
ROUNDS = 5  # of generation, after one round that is not counted
ROUND_SECONDS = 2.0  # a round of decoding ends after this
ROUNDS_SECONDS = 10.0  # no new round starts after this
PROMPT_TOKENS = 64
NEW_TOKENS = 128
PREFILL_TOKENS = 1024
MATMUL_SECONDS = 1.0
SEED = 0


def measure(config: BenchConfig, report: Report, clock: Clock, started_at: float) -> Bench:
    """Train a new model for some steps, let it generate, and time a matrix product.

    Args:
        config: the model, and how long to measure.
        report: called with the progress.
        clock: times what is measured, and stamps the progress.
        started_at: when the command started, by the clock's seconds.

    Raises:
        ConfigError: the heads do not divide the width.
        MemoryLimitError: the model does not fit in memory.
    """
    made = planned(config, resources())
    runtime.hold_memory(made.memory_limit, made.peak, None)
    mx.reset_peak_memory()
    step = synthetic_step(made)
    first_step_at = clock.seconds()
    first, counted = _time_steps(step, made, config.seconds, report, clock)
    peak_memory = mx.get_peak_memory()
    model = step.model
    model.prepare_for_inference()
    generation = _generation(model, report, clock)
    environment = _environment()
    return Bench(
        config=config,
        parameters=made.parameters,
        flops_per_token=made.flops_per_token,
        environment=environment,
        training=_training(
            made, environment, first_step_at - started_at, first, counted, peak_memory
        ),
        generation=generation,
        ways=tuned(),
    )


def planned(config: BenchConfig, resources: Resources) -> Plan:
    """Return the plan of a training run with one micro-batch per step.

    Raises:
        MlxchatError: as `plan`.
        MemoryLimitError: the run only fits with gradient checkpointing.
    """
    settings = PretrainConfig(
        arch=config.arch,
        depth=config.depth,
        head_dim=config.head_dim,
        max_seq_len=config.max_seq_len,
        device_batch_size=config.device_batch_size,
        total_batch_size=config.device_batch_size * config.max_seq_len,
        num_iterations=UNCOUNTED_STEPS + config.steps,
    )
    made = plan(settings, config.vocab_size, resources)
    if made.grad_checkpoint:
        raise MemoryLimitError(
            f"{counted(config.device_batch_size, 'rows')} of {config.max_seq_len:,} tokens only "
            "fit into memory with gradient checkpointing, which the benchmark does not use.",
            "Use a smaller `device_batch_size`, `max_seq_len`, `vocab_size` or `depth`.",
        )
    return made


def _time_steps(
    step: StepParts, made: Plan, limit: float, report: Report, clock: Clock
) -> tuple[float, list[float]]:
    """Train all steps of the plan, or counted steps for ``limit`` seconds if that is less.

    As in training, each step is launched before the previous one is awaited. Only the first is
    awaited by itself, so that its compilation time is seen.

    Returns:
        The seconds of the first step, and those of each counted step.
    """
    launch, most, tokens = compile_step(step), made.num_iterations, made.tokens_per_step

    def tell(done: int, total: int) -> None:
        report(Progressed(clock(), "training", done * tokens, total * tokens, "tokens"))

    ends = [clock.seconds()]  # when each step ended; before those, when the first one started
    tell(0, most)
    launch(1)
    mx.synchronize()
    ends.append(clock.seconds())
    tell(1, most)
    under_way, over = launch(2), False
    while not over:
        done = len(ends)
        following = launch(done + 1)
        mx.eval(under_way.metrics)
        under_way = following
        ends.append(clock.seconds())
        slow = (
            done >= UNCOUNTED_STEPS + LEAST_COUNTED_STEPS
            and ends[-1] - ends[UNCOUNTED_STEPS] >= limit
        )
        over = slow or done == most
        tell(done, done if over else most)
    seconds = [after - before for before, after in pairwise(ends)]
    return seconds[0], seconds[UNCOUNTED_STEPS:]


def _training(
    made: Plan,
    environment: Environment,
    startup: float,
    first: float,
    counted: list[float],
    peak_memory: int,
) -> TrainingSpeed:
    tokens_per_second = made.tokens_per_step / median(counted)
    speed = made.flops_per_token * tokens_per_second
    peak = environment.peak_flops
    return TrainingSpeed(
        startup_seconds=startup,
        first_step_seconds=first,
        step_seconds=counted,
        tokens_per_step=made.tokens_per_step,
        tokens_per_second=tokens_per_second,
        flops_per_second=speed,
        matmul_share=speed / environment.matmul_flops,
        mfu=speed / peak if peak else None,
        peak_memory=peak_memory,
    )


def _generation(model: GPT, report: Report, clock: Clock) -> Generation:
    """Time the prefill of a prompt, and the decoding after a shorter one, within the context."""
    context, vocab_size = model.config.sequence_len, model.config.vocab_size
    ids = _random_ids(vocab_size, min(PREFILL_TOKENS, context))
    prompt = ids[: min(PROMPT_TOKENS, context // 2)]
    decoded = min(NEW_TOKENS, context - len(prompt))

    def rates(task: str, rate: Callable[[], float]) -> float:
        return median(_rounds(task, rate, report, clock))

    return Generation(
        prefill_tokens=len(ids),
        prefill_tokens_per_second=rates("prefill", lambda: _prefill_rate(model, ids, clock)),
        prompt_tokens=len(prompt),
        decoded_tokens=decoded,
        tokens_per_second=rates("decoding", lambda: _decode_rate(model, prompt, decoded, clock)),
    )


def _rounds(task: str, rate: Callable[[], float], report: Report, clock: Clock) -> list[float]:
    """Return what ``rate`` returns in each round but the first; at least one value."""
    started_at, rates = clock.seconds(), list[float]()
    for done in range(1 + ROUNDS):
        report(Progressed(clock(), task, done, 1 + ROUNDS, "rounds"))
        rates.append(rate())
        if done and clock.seconds() - started_at >= ROUNDS_SECONDS:
            break
    report(Progressed(clock(), task, len(rates), len(rates), "rounds"))
    return rates[1:]


def _prefill_rate(model: GPT, ids: list[int], clock: Clock) -> float:
    """Return the tokens per second of computing the logits after a prompt."""
    started_at = clock.seconds()
    mx.eval(prefill(model, ids, KVCache(model.config)))
    return len(ids) / (clock.seconds() - started_at)


def _decode_rate(model: GPT, prompt: list[int], decoded: int, clock: Clock) -> float:
    """Return the tokens per second of decoding, not counting the first token and its prefill."""
    stream = generate(
        model,
        prompt,
        KVCache(model.config),
        stop=frozenset(),
        max_tokens=decoded,
    )
    with closing(stream):
        next(stream)
        times = [clock.seconds()]
        for _ in stream:
            times.append(clock.seconds())
            if times[-1] - times[0] >= ROUND_SECONDS:
                break
    return (len(times) - 1) / (times[-1] - times[0])


def _environment() -> Environment:
    machine = runtime.machine()
    return Environment(
        device=machine.device,
        backend=machine.backend,
        compute_dtype=str(machine.compute_dtype).rpartition(".")[2],
        memory=machine.memory,
        peak_flops=machine.peak_flops,
        matmul_flops=runtime.matmul_flops(MATMUL_SECONDS),
        mlxchat=__version__,
        mlx=version("mlx"),
        python=platform.python_version(),
        system=platform.platform(),
    )


def _random_ids(vocab_size: int, count: int) -> list[int]:
    """Return random token ids, the same for the same arguments."""
    ids: list[int] = np.random.default_rng(SEED).integers(0, vocab_size, count).tolist()
    return ids
