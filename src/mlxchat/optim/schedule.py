"""How learning rates and momentum change over a run: pure functions of the step.

``step`` counts the updates already made, from 0, as in nanochat's base_train (commit dfc8833).
"""

MOMENTUM_RAMP_STEPS = 300
REFERENCE_WIDTH = 768  # the width for which the AdamW learning rates were tuned


def width_scale(n_embd: int) -> float:
    """Factor on the AdamW learning rates: one over the square root of the width."""
    return float((n_embd / REFERENCE_WIDTH) ** -0.5)


def learning_rate_multiplier(
    step: int, total: int, warmup_ratio: float, warmdown_ratio: float, final_fraction: float
) -> float:
    """Linear warm-up, then 1, then linear to ``final_fraction`` over the last part of the run."""
    warmup = round(warmup_ratio * total)
    warmdown = round(warmdown_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if step <= total - warmdown:
        return 1.0
    left = (total - step) / warmdown
    return left + (1 - left) * final_fraction


def muon_momentum(step: int) -> float:
    """From 0.85 to 0.95 over the first 300 steps."""
    done = min(step / MOMENTUM_RAMP_STEPS, 1.0)
    return (1 - done) * 0.85 + done * 0.95
