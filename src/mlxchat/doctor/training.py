"""Checks of training: whether it learns, how soon it begins, what a limit costs, its gradients.

The gradients come last: with CUDA their kernels take a minute or two to compile the first time.
"""

from mlxchat.counts import counted, round_size
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
    value = (
        f"loss {steps.first_loss:.2f} to {steps.last_loss:.2f} in {counted(steps.count, 'steps')}"
    )
    if not steps.last_loss <= steps.first_loss - LEAST_FALL:
        return wrong(value, "The updates do not reach the model, or are wrong.")
    return good(value)


def _first_step(host: Host) -> Verdict:
    steps = host.measure(STEPS)
    value = f"{steps.first_seconds:.1f} s, then {1000 * steps.free.seconds:,.0f} ms"
    if steps.first_seconds > LONGEST_FIRST_STEP:
        return doubtful(value, "Its kernels were compiled, and are kept for the next run.")
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
        f"A step takes {ratio:.2f} times as long {how}; the peaks are {round_size(pace.peak)} and "
        f"{round_size(other.peak)}."
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
        name="learning",
        measures="Whether a few dozen steps on one batch lower a new model's loss.",
        limit=f"a fall of at least {LEAST_FALL:g}",
        remedy=DO_NOT_TRUST,
        commands=TRAINING,
        examine=_learning,
        absent=with_mlx,
    ),
    Check(
        name="first step",
        measures="How long the first training step takes, which includes compiling kernels.",
        limit=f"at most {LONGEST_FIRST_STEP:g} s",
        remedy=(
            "Run the check again: it should be faster now. With CUDA, kernels are kept in "
            "MLXCHAT_HOME."
        ),
        commands=TRAINING,
        examine=_first_step,
        absent=with_mlx,
    ),
    Check(
        name="memory limit",
        measures=(
            "The cost of limiting MLX to a run's planned memory, which frees and reallocates "
            "buffers."
        ),
        limit=f"at most {SLOWER_HELD:g} times as slow",
        remedy=("If nothing else was running, give runs more memory with `memory_limit`."),
        commands=TRAINING,
        examine=_held,
        absent=with_mlx,
    ),
    Check(
        name="wired memory",
        measures=(
            "What it costs or gains to wire a run's memory, so that the system cannot swap it out."
        ),
        limit=f"at most {SLOWER_HELD:g} times as slow",
        remedy="Leave out `wired_limit`, which is the default.",
        commands=TRAINING,
        examine=_wired,
        absent=with_metal,
    ),
    Check(
        name="gradients",
        measures=(
            "The error of a small model's compiled loss and gradients compared with uncompiled "
            "ones on the CPU, in float32."
        ),
        limit=f"at most {LARGEST_GRADIENT:g} of each norm",
        remedy=DO_NOT_TRUST,
        commands=TRAINING,
        examine=_classic_gradients,
        absent=with_mlx,
    ),
    Check(
        name="modern gradients",
        measures="The same for the modern architecture, with attention windows, smear and "
        "value embeddings.",
        limit=f"at most {LARGEST_GRADIENT:g} of each norm",
        remedy=DO_NOT_TRUST,
        commands=TRAINING,
        examine=_modern_gradients,
        absent=with_mlx,
    ),
)
