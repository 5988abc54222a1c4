"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/)."""

from mlxchat.runtime import mx

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(G: mx.array, dtype: mx.Dtype) -> mx.array:
    """Nearest (semi-)orthogonal matrices, roughly: singular values end between 0.5 and 1.5.

    Quintic Newton-Schulz in ``dtype``; the norm before it is taken in float32.

    Args:
        G: (..., R, C).
        dtype: of the matrix products.
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


def update(
    p: mx.array, g: mx.array, buffer: mx.array, lr: mx.array, momentum: mx.array, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """One step on matrices stacked by shape, all (N, R, C); returns parameters and buffer.

    Nesterov momentum as an average: buffer and gradient are each interpolated towards the other.
    """
    buffer = momentum * buffer + (1 - momentum) * g
    g = (1 - momentum) * g + momentum * buffer
    rows, columns = p.shape[-2:]
    scale = max(1.0, rows / columns) ** 0.5
    return p - lr * scale * orthogonalise(g, dtype).astype(p.dtype), buffer
