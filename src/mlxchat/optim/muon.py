"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/).

Matrices of one shape are orthogonalised together, stacked; everything else happens in their own
memory, since nothing here needs what they were before.
"""

from collections.abc import Sequence

from mlxchat.optim.adamw import in_place
from mlxchat.runtime import mx

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


Matrices = Sequence[mx.array]
"""Of one shape, (R, C)."""


def update(
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
    lr, G = lr * shape_scale(G), orthogonalise(G)
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


def orthogonalise(G: mx.array) -> mx.array:
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
