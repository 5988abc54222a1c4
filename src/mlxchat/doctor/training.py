"""Checks of training: whether it learns, how long it takes to begin, and what a limit costs."""

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
from mlxchat.doctor.facts import STEPS, Pace
from mlxchat.doctor.host import Host

LEAST_FALL = 1.0  # nats; where all is well, the loss falls from 7 or more to below 1
LONGEST_FIRST_STEP = 20.0  # seconds
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


TRAINING_CHECKS = (
    Check(
        "learning",
        "Whether a few dozen steps on one batch lower the loss of a new model.",
        f"a fall of at least {LEAST_FALL:g}",
        "Do not train here. Update MLX (pip install -U mlx); if that changes nothing, report it "
        "with this command's report.",
        TRAINING,
        _learning,
        with_mlx,
    ),
    Check(
        "first step",
        "How long the first training step takes, in which kernels are compiled.",
        f"at most {LONGEST_FIRST_STEP:g} s",
        "Check once more: it should be shorter now. With CUDA the kernels are kept in "
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
)
