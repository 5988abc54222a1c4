"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/).

All matrices of one shape are stacked, (N, R, C), and updated together.
"""

from mlxchat.runtime import mx

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def update(
    p: mx.array, g: mx.array, buffer: mx.array, lr: mx.array, momentum: mx.array, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """One step on (N, R, C) matrices; returns parameters and momentum buffer.

    Args:
        dtype: in which the gradient is orthogonalised.
    """
    g, buffer = nesterov(g, buffer, momentum)
    return p - lr * shape_scale(p) * orthogonalise(g, dtype).astype(p.dtype), buffer


def nesterov(g: mx.array, buffer: mx.array, momentum: mx.array) -> tuple[mx.array, mx.array]:
    """Momentum as an average: buffer and gradient are each interpolated towards the other."""
    buffer = momentum * buffer + (1 - momentum) * g
    return (1 - momentum) * g + momentum * buffer, buffer


def shape_scale(p: mx.array) -> float:
    """Factor on the learning rate of matrices with more rows than columns."""
    rows, columns = p.shape[-2:]
    return float(max(1.0, rows / columns) ** 0.5)


def orthogonalise(G: mx.array, dtype: mx.Dtype) -> mx.array:
    """Nearest (semi-)orthogonal matrices, roughly: singular values end between 0.5 and 1.5.

    Quintic Newton-Schulz in ``dtype``; the norm before it is taken in float32.
    """
    a, b, c = NEWTON_SCHULZ
    tall = G.shape[-2] > G.shape[-1]
    X = G.swapaxes(-1, -2) if tall else G
    norm = mx.linalg.norm(X.astype(mx.float32), axis=[-2, -1], keepdims=True)
    X = (X / (norm + 1e-7)).astype(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        A = X @ X.swapaxes(-1, -2)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.swapaxes(-1, -2) if tall else X
