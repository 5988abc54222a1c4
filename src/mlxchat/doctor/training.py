"""Checks of training: whether it learns, how soon it begins, what a limit costs, its gradients.

The gradients come last: with CUDA their kernels take a minute or two to compile the first time.
"""

from mlxchat.doctor.arithmetic import DO_NOT_TRUST
from mlxchat.doctor.check import (
    TRAINING,
    Check,
    Verdict,
    doubtful,
    good,
    with_metal,
    with_mlx,
    wrong,
)
from mlxchat.doctor.host import Host
from mlxchat.doctor.probes import GRADIENTS, STEPS, Pace
from mlxchat.model.config import Architecture

LEAST_FALL = 1.0  # nats; where all is well, the loss falls from 7 or more to below 1
LONGEST_FIRST_STEP = 20.0  # seconds
LARGEST_GRADIENT = 1e-3
FLOAT32 = {"MLX_ENABLE_TF32": "0"}  # float32 products without rounding to 10 bits, on M5 and CUDA
SLOWER_HELD = 1.3  # times as slow as without the limit


def _learning(host: Host) -> Verdict:
    steps = host.measure(STEPS)
    value = f"loss {steps.first_loss:.2f} to {steps.last_loss:.2f} in {steps.count} steps"
    if not steps.last_loss <= steps.first_loss - LEAST_FALL:
        return wrong(value, "The updates do not reach the model, or are wrong.")
    return good(value)


def _first_step(host: Host) -> Verdict:
    steps = host.measure(STEPS)
    value = f"{steps.first_seconds:.1f} s, then {1000 * steps.free.seconds:,.0f} ms"
    if steps.first_seconds > LONGEST_FIRST_STEP:
        return doubtful(value, "Its kernels were compiled; they are kept for the next time.")
    return good(value)


def _held(host: Host) -> Verdict:
    steps = host.measure(STEPS)
    return _compared(steps.tokens, steps.held, steps.free, "held")


def _wired(host: Host) -> Verdict:
    steps = host.measure(STEPS)
    assert steps.wired is not None
    return _compared(steps.tokens, steps.wired, steps.held, "wired")


def _compared(tokens: int, pace: Pace, other: Pace, how: str) -> Verdict:
    ratio = pace.seconds / other.seconds
    value = f"{tokens / pace.seconds:,.0f} tokens/s {how}, {tokens / other.seconds:,.0f} not"
    detail = (
        f"A step takes {ratio:.2f} times as long {how}; the peaks are {pace.peak / 2**20:,.0f} and "
        f"{other.peak / 2**20:,.0f} MiB."
    )
    return doubtful(value, detail) if ratio > SLOWER_HELD else good(value, detail)


def _classic_gradients(host: Host) -> Verdict:
    return _gradients(host, "classic")


def _modern_gradients(host: Host) -> Verdict:
    return _gradients(host, "modern")


def _gradients(host: Host, arch: Architecture) -> Verdict:
    found = host.measure(GRADIENTS, FLOAT32, arch=arch)
    value, detail = f"{found.value:.1e}", f"It is largest for {found.where}."
    return good(value, detail) if found.value <= LARGEST_GRADIENT else wrong(value, detail)


TRAINING_CHECKS = (
    Check(
        "learning",
        "Whether a few dozen steps on one batch lower the loss of a new model.",
        f"a fall of at least {LEAST_FALL:g}",
        DO_NOT_TRUST,
        TRAINING,
        _learning,
        with_mlx,
    ),
    Check(
        "first step",
        "How long the first training step takes, in which kernels are compiled.",
        f"at most {LONGEST_FIRST_STEP:g} s",
        "Run the check again: it should be faster now. With CUDA the kernels are kept in "
        "MLXCHAT_HOME.",
        TRAINING,
        _first_step,
        with_mlx,
    ),
    Check(
        "memory limit",
        "What holding MLX to a run's planned memory costs, which gives buffers back and makes "
        "them anew.",
        f"at most {SLOWER_HELD:g} times as slow",
        "If the machine did nothing else meanwhile, give runs more room with `memory_limit`.",
        TRAINING,
        _held,
        with_mlx,
    ),
    Check(
        "wired memory",
        "What wiring a run's memory, so that the system cannot swap it out, costs or gains.",
        f"at most {SLOWER_HELD:g} times as slow",
        "Leave out `wired_limit`, as is the default.",
        TRAINING,
        _wired,
        with_metal,
    ),
    Check(
        "gradients",
        "How far the compiled loss and gradients of a small model are from plain ones on the CPU, "
        "in float32.",
        f"at most {LARGEST_GRADIENT:g} of each norm",
        DO_NOT_TRUST,
        TRAINING,
        _classic_gradients,
        with_mlx,
    ),
    Check(
        "modern gradients",
        "The same for the modern architecture, with windows, smear and value embeddings.",
        f"at most {LARGEST_GRADIENT:g} of each norm",
        DO_NOT_TRUST,
        TRAINING,
        _modern_gradients,
        with_mlx,
    ),
)
