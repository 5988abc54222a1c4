"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/).

Matrices of one shape are orthogonalised together, stacked; everything else happens in their own
memory, since nothing here needs what they were before.

The modern architecture's Muon: better conditioned, normalised by neuron, cautious decay.

As in `muon`, matrices of one shape are stacked, (N, R, C), to be orthogonalised.
"""

from collections.abc import Sequence

from mlxchat.optim.adamw import in_place
from mlxchat.runtime import mx

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


Matrices = Sequence[mx.array]
"""Of one shape, (R, C)."""


def muon_update(
    ps: Matrices,
    gs: Matrices,
    buffers: Matrices,
    lr: mx.array,
    momentum: mx.array,
    dtype: mx.Dtype,
) -> tuple[list[mx.array], list[mx.array]]:
    """One step; returns parameters and momentum buffers.

    Args:
        dtype: in which the gradients are orthogonalised.
    """
    G, buffers = nesterov(gs, buffers, momentum, dtype)
    lr, G = lr * shape_scale(G), newton_schulz(G)
    return [p - lr * g for p, g in zip(ps, G, strict=True)], buffers


def nesterov(
    gs: Matrices, buffers: Matrices, momentum: mx.array, dtype: mx.Dtype
) -> tuple[mx.array, list[mx.array]]:
    """Momentum as an average: buffer and gradient are each interpolated towards the other.

    Returns the gradients, stacked, (N, R, C) in ``dtype``, and the buffers.
    """
    after = [in_place(momentum * b + (1 - momentum) * g) for g, b in zip(gs, buffers, strict=True)]
    gs = [(1 - momentum) * g + momentum * b for g, b in zip(gs, after, strict=True)]
    return mx.stack([g.astype(dtype) for g in gs]), after


def shape_scale(p: mx.array) -> float:
    """Factor on the learning rate of matrices with more rows than columns."""
    rows, columns = p.shape[-2:]
    return float(max(1.0, rows / columns) ** 0.5)


def newton_schulz(G: mx.array) -> mx.array:
    """Nearest (semi-)orthogonal matrices, roughly: singular values end between 0.5 and 1.5.

    Quintic Newton-Schulz in the dtype of ``G``; the norm before it is taken in float32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = G.shape[-2] > G.shape[-1]
    X = G.swapaxes(-1, -2) if tall else G
    norm = mx.linalg.norm(X.astype(mx.float32), axis=[-2, -1], keepdims=True)
    X = (X / (norm + 1e-7)).astype(G.dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.swapaxes(-1, -2)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.swapaxes(-1, -2) if tall else X


BETA2 = 0.9  # of the second moment
POLAR_EXPRESS = (  # https://arxiv.org/abs/2505.16932, for 5 steps, safety 2e-2, cushion 2
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def normuon_update(
    ps: Matrices,
    gs: Matrices,
    buffers: Matrices,
    seconds: Matrices,
    lr: mx.array,
    momentum: mx.array,
    weight_decay: mx.array,
    dtype: mx.Dtype,
) -> tuple[list[mx.array], list[mx.array], list[mx.array]]:
    """One step on matrices of one shape; returns parameters, momentum buffers and second moments.

    Weight decay is cautious (https://arxiv.org/abs/2411.16085): only where the update pulls the
    parameter towards zero as well.

    Args:
        seconds: as `second_moment` makes them.
        dtype: in which the gradients are orthogonalised.
    """
    g, buffers = nesterov(gs, buffers, momentum, dtype)
    g = polar_express(equalise_rows(g)).astype(mx.float32)
    # The norm of orthogonal matrices is known (https://arxiv.org/abs/2602.21545).
    g = g * (float(min(g.shape[-2:]) ** 0.5) / mx.maximum(_norm(g), 1e-6))
    g, second = normalise_neurons(g, mx.stack(list(seconds)))
    lr = lr * shape_scale(g)
    new = [
        p - lr * each - lr * weight_decay * p * (each * p >= 0)
        for p, each in zip(ps, g, strict=True)
    ]
    return new, buffers, list(second)


def second_moment(p: mx.array) -> mx.array:
    """The second moment before the first step: a number for each row, or column if those are more.

    (R, C) to (R, 1) or (1, C).
    """
    R, C = p.shape
    return mx.zeros((R, 1) if R >= C else (1, C))


def equalise_rows(G: mx.array) -> mx.array:
    """Give all rows of a matrix the same norm (https://arxiv.org/abs/2603.28254)."""
    rows = mx.linalg.norm(G.astype(mx.float32), axis=-1, keepdims=True)
    scale = _norm(G) / float(G.shape[-2] ** 0.5) / mx.maximum(rows, 1e-6)
    return G * scale.astype(G.dtype)


def polar_express(G: mx.array) -> mx.array:
    """Nearest (semi-)orthogonal matrices, by Polar Express, in the dtype of ``G``."""
    tall = G.shape[-2] > G.shape[-1]
    X = G.swapaxes(-1, -2) if tall else G
    X = (X.astype(mx.float32) / (1.01 * _norm(X) + 1e-6)).astype(G.dtype)
    for a, b, c in POLAR_EXPRESS:
        A = X @ X.swapaxes(-1, -2)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.swapaxes(-1, -2) if tall else X


def normalise_neurons(g: mx.array, second: mx.array) -> tuple[mx.array, mx.array]:
    """NorMuon (https://arxiv.org/abs/2510.05491): even out the rows' sizes, the norm unchanged.

    Of columns where there are more of those. Returns the update and its second moment.
    """
    axis = -1 if g.shape[-2] >= g.shape[-1] else -2
    variance = g.square().mean(axis=axis, keepdims=True)
    second = BETA2 * second + (1 - BETA2) * variance
    scale = mx.rsqrt(mx.maximum(second, 1e-10))
    before = mx.sqrt(variance.sum(axis=(-2, -1), keepdims=True))
    after = mx.sqrt((variance * scale.square()).sum(axis=(-2, -1), keepdims=True))
    root = float(g.shape[axis] ** 0.5)  # the sums are of means over this many
    return g * scale * (root * before / mx.maximum(root * after, 1e-10)), second


def _norm(G: mx.array) -> mx.array:
    """Frobenius norms in float32, (..., 1, 1)."""
    return mx.linalg.norm(G.astype(mx.float32), axis=[-2, -1], keepdims=True)
