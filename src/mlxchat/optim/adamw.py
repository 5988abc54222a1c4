"""AdamW (https://arxiv.org/abs/1711.05101), as torch computes it."""

from typing import cast

from mlxchat.runtime import mx

EPS = 1e-10


def in_place(x: mx.array) -> mx.array:
    """The same, computed by a kernel of its own, which can write to the memory of what it reads.

    A kernel that `mx.compile` makes for several outputs at once takes new memory for each of them.
    """
    return cast(mx.array, mx.depends(x, x))


def update(
    p: mx.array,
    g: mx.array,
    m: mx.array,
    v: mx.array,
    step: mx.array,
    lr: mx.array,
    betas: tuple[float, float],
    weight_decay: mx.array | float,
) -> tuple[mx.array, mx.array, mx.array]:
    """One step; returns the parameter and its first and second moments.

    Args:
        step: updates including this one, a float32 scalar, for the bias correction.
    """
    beta1, beta2 = betas
    m = in_place(beta1 * m + (1 - beta1) * g)
    v = in_place(beta2 * v + (1 - beta2) * g * g)
    root = mx.sqrt(v) / mx.sqrt(1 - beta2**step) + EPS
    p = p * (1 - lr * weight_decay) - (lr / (1 - beta1**step)) * m / root
    return p, m, v
