"""How learning rates, momentum and weight decay change over a run: pure functions of the step.

``step`` counts the updates already made, from 0, as in nanochat's base_train (commits dfc8833 for
the classic architecture and 92d63d4 for the modern one).
"""

import math

from mlxchat.model.config import Architecture

REFERENCE_WIDTH = 768  # the width for which the AdamW learning rates were tuned


def width_scale(n_embd: int) -> float:
    """Factor on the AdamW learning rates: one over the square root of the width."""
    return float((n_embd / REFERENCE_WIDTH) ** -0.5)


def learning_rate_multiplier(
    step: int, total: int, warmup_steps: int, warmdown_ratio: float, final_fraction: float
) -> float:
    """Linear warm-up, then 1, then linear to ``final_fraction`` over the last part of the run."""
    warmdown = round(warmdown_ratio * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step <= total - warmdown:
        return 1.0
    left = (total - step) / warmdown
    return left + (1 - left) * final_fraction


def muon_momentum(arch: Architecture, step: int, total: int, warmdown_ratio: float) -> float:
    """Classic: up from 0.85 to 0.95, in 300 steps. Modern: to 0.97, in 400, and later to 0.90."""
    if arch == "classic":
        return _between(0.85, 0.95, min(step / 300, 1.0))
    if step < 400:
        return _between(0.85, 0.97, step / 400)
    warmdown = round(warmdown_ratio * total)
    if step < total - warmdown:
        return 0.97
    return _between(0.97, 0.90, (step - (total - warmdown)) / warmdown)


def weight_decay_multiplier(arch: Architecture, step: int, total: int) -> float:
    """Classic: 1 throughout. Modern: from 1 to 0 along a cosine."""
    return 1.0 if arch == "classic" else 0.5 * (1 + math.cos(math.pi * step / total))


def _between(first: float, last: float, done: float) -> float:
    return (1 - done) * first + done * last
