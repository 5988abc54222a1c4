"""Learning rates, momentum and weight decay: pure functions of the recipe and the step.

``step`` counts the updates already made, from 0, as in nanochat's base_train (commits dfc8833 for
the classic architecture and 92d63d4 for the modern one).
"""

import math

from mlxchat.config.recipes import Recipe
from mlxchat.model.config import Architecture, GPTConfig

ADAPTER = "adapter"  # the group of an adapter's parameters
REFERENCE_WIDTH = 768  # for which the learning rates of AdamW were tuned
REFERENCE_BATCH = 2**19  # tokens in a step, for which nanochat's modern rates were tuned
SMEAR_RATE = 0.2  # learning rate of smear and backout, whatever the batch
STEADY_MOMENTUM: dict[Architecture, float] = {"classic": 0.95, "modern": 0.97}


def learning_rates(recipe: Recipe, config: GPTConfig, tokens_per_step: int) -> dict[str, float]:
    """Return the learning rate of each parameter group, by the group's name.

    AdamW's shrink with the width of the model. Those that are transferred from another batch, all
    but that of the smear, grow with its square root.
    """
    by_width = width_scale(config.n_embd)
    rates = {
        "embedding": recipe.embedding_lr * by_width,
        "unembedding": recipe.unembedding_lr * by_width,
        "matrix": recipe.matrix_lr,
    }
    if recipe.scalar_lr is None:
        return rates
    rates["value_embeds"] = rates["embedding"] / 2
    rates["resid"] = recipe.scalar_lr * 0.01
    rates["x0"] = recipe.scalar_lr
    by_batch = math.sqrt(tokens_per_step / REFERENCE_BATCH) if recipe.transferred else 1.0
    return {group: rate * by_batch for group, rate in rates.items()} | {"smear": SMEAR_RATE}


def width_scale(n_embd: int) -> float:
    """Return the factor on AdamW's learning rates, (width / 768)^(-1/2)."""
    return float((n_embd / REFERENCE_WIDTH) ** -0.5)


def learning_rate_multiplier(
    step: int, total: int, warmup_steps: int, warmdown_ratio: float, final_fraction: float
) -> float:
    """Return the factor on all learning rates: linear warm-up, 1, linear warm-down.

    Args:
        total: steps in the run.
        warmup_steps: steps in which the factor rises to 1.
        warmdown_ratio: the last part of the run, in which the factor falls.
        final_fraction: the factor at the end of the run.
    """
    warmdown = round(warmdown_ratio * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step <= total - warmdown:
        return 1.0
    left = (total - step) / warmdown
    return left + (1 - left) * final_fraction


def muon_momentum(arch: Architecture, step: int, total: int, warmdown_ratio: float) -> float:
    """Return Muon's momentum.

    Classic: it rises from 0.85 to 0.95 over 300 steps. Modern: it rises from 0.85 to 0.97 over 400
    steps and falls to 0.90 over the warm-down.
    """
    peak = STEADY_MOMENTUM[arch]
    if arch == "classic":
        return _between(0.85, peak, min(step / 300, 1.0))
    if step < 400:
        return _between(0.85, peak, step / 400)
    warmdown = round(warmdown_ratio * total)
    if step < total - warmdown:
        return peak
    return _between(peak, 0.90, (step - (total - warmdown)) / warmdown)


def weight_decay_multiplier(arch: Architecture, step: int, total: int) -> float:
    """Return the factor on the weight decay. Classic: 1. Modern: half a cosine from 1 to 0."""
    return 1.0 if arch == "classic" else 0.5 * (1 + math.cos(math.pi * step / total))


def _between(first: float, last: float, done: float) -> float:
    """Interpolate linearly; ``done`` runs from 0 to 1."""
    return (1 - done) * first + done * last
