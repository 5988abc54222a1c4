"""Muon and NorMuon: momentum, orthogonalised, for the matrices of the blocks.

Muon (https://kellerjordan.github.io/posts/muon/) replaces a matrix's update by the nearest
semi-orthogonal matrix. NorMuon (https://arxiv.org/abs/2510.05491) also evens out the sizes of its
neurons' updates. Matrices of one shape are orthogonalised together, stacked: G is (N, R, C).
Everything else is computed for each matrix in the memory of the old values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mlxchat.model.cpu import sum_last
from mlxchat.optim.rule import ArrayList, Step, in_place
from mlxchat.runtime import mx


@dataclass(frozen=True)
class Muon:
    """Muon with Newton-Schulz iterations, as in the classic architecture. Its state is a momentum.

    B <- momentum B + (1 - momentum) G
    W <- W - lr max(1, R/C)^(1/2) NewtonSchulz((1 - momentum) G + momentum B)
    """

    state_names: ClassVar[tuple[str, ...]] = ("muon.{}",)
    stacked: ClassVar[bool] = True
    constants: ClassVar[tuple[float, ...]] = ()

    def init(self, p: mx.array) -> tuple[mx.array, ...]:
        """Return a zero momentum of the matrix's shape."""
        return (mx.zeros_like(p),)

    def update(
        self, ps: ArrayList, gs: ArrayList, state: Sequence[ArrayList], step: Step
    ) -> tuple[ArrayList, Sequence[ArrayList]]:
        """Return the new matrices and momentum buffers."""
        G, buffers = nesterov(gs, state[0], step)
        lr, G = step.lr * shape_scale(G), newton_schulz(G)
        return [p - lr * g for p, g in zip(ps, G, strict=True)], [buffers]


@dataclass(frozen=True)
class NorMuon:
    """NorMuon with Polar Express, as in the modern architecture, and cautious weight decay.

    Weight decay is cautious (https://arxiv.org/abs/2411.16085): it acts only where the update, too,
    pulls the parameter towards zero. Its state is a momentum and the neurons' second moment.
    """

    state_names: ClassVar[tuple[str, ...]] = ("muon.{}", "normuon.{}")
    stacked: ClassVar[bool] = True
    constants: ClassVar[tuple[float, ...]] = ()

    def init(self, p: mx.array) -> tuple[mx.array, ...]:
        """Return a zero momentum and a zero second moment, (R, 1) or, if R < C, (1, C)."""
        R, C = p.shape
        return mx.zeros_like(p), mx.zeros((R, 1) if R >= C else (1, C))

    def update(
        self, ps: ArrayList, gs: ArrayList, state: Sequence[ArrayList], step: Step
    ) -> tuple[ArrayList, Sequence[ArrayList]]:
        """Return the new matrices, momentum buffers and second moments."""
        buffers, moments = state
        G, buffers = nesterov(gs, buffers, step)
        U = polar_express(equalise_rows(G)).astype(mx.float32)
        U, v = normalise_neurons(fix_norm(U), mx.stack(list(moments)))
        lr, decay = step.lr * shape_scale(U), step.weight_decay
        new = [p - lr * u - lr * decay * p * (u * p >= 0) for p, u in zip(ps, U, strict=True)]
        return new, [buffers, list(v)]


def nesterov(gs: ArrayList, buffers: ArrayList, step: Step) -> tuple[mx.array, list[mx.array]]:
    """Apply Nesterov momentum, with the momentum buffer as a moving average of the gradients.

    Returns:
        The updates to orthogonalise, stacked, (N, R, C) in the compute dtype; the new buffers.
    """
    momentum = step.momentum
    after = [in_place(momentum * b + (1 - momentum) * g) for g, b in zip(gs, buffers, strict=True)]
    gs = [(1 - momentum) * g + momentum * b for g, b in zip(gs, after, strict=True)]
    return mx.stack([g.astype(step.dtype) for g in gs]), after


def shape_scale(G: mx.array) -> float:
    """Return the factor on the learning rate of tall matrices, max(1, R/C)^(1/2)."""
    R, C = G.shape[-2:]
    return float(max(1.0, R / C) ** 0.5)


NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's coefficients a, b, c
POLAR_EXPRESS = (  # of the paper's algorithm for 5 steps, safety factor 2e-2, cushion 2
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def newton_schulz(G: mx.array) -> mx.array:
    """Return roughly the nearest semi-orthogonal matrices to (N, R, C), in the dtype of ``G``.

    Five quintic Newton-Schulz iterations with Muon's coefficients, after which singular values lie
    between about 0.5 and 1.5. The norm before them is computed in float32.
    """
    X = _wide(G)
    X = (X / (frobenius_norm(X) + 1e-7)).astype(G.dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        X = _quintic(X, *NEWTON_SCHULZ)
    return _shaped_as(X, G)


def polar_express(G: mx.array) -> mx.array:
    """Return the nearest semi-orthogonal matrices to (N, R, C), in the dtype of ``G``.

    Polar Express (https://arxiv.org/abs/2505.16932): the quintic iteration with coefficients that
    are optimal for each step.
    """
    X = _wide(G)
    X = (X.astype(mx.float32) / (1.01 * frobenius_norm(X) + 1e-6)).astype(G.dtype)
    for a, b, c in POLAR_EXPRESS:
        X = _quintic(X, a, b, c)
    return _shaped_as(X, G)


def _quintic(X: mx.array, a: float, b: float, c: float) -> mx.array:
    """Apply a s + b s^3 + c s^5 to the singular values s of wide matrices."""
    A = X @ X.swapaxes(-1, -2)  # (N, R, R)
    B = mx.addmm(A, A, A, alpha=c, beta=b)  # b A + c A^2
    return mx.addmm(X, B, X, beta=a)  # a X + B X


def _wide(G: mx.array) -> mx.array:
    """Transpose tall matrices, so that products of X and its transpose are as small as can be."""
    return G.swapaxes(-1, -2) if G.shape[-2] > G.shape[-1] else G


def _shaped_as(X: mx.array, G: mx.array) -> mx.array:
    return X.swapaxes(-1, -2) if G.shape[-2] > G.shape[-1] else X


def equalise_rows(G: mx.array) -> mx.array:
    """Give all rows of a matrix the same norm (https://arxiv.org/abs/2603.28254)."""
    rows = mx.linalg.norm(G.astype(mx.float32), axis=-1, keepdims=True)  # (N, R, 1)
    scale = frobenius_norm(G) / float(G.shape[-2] ** 0.5) / mx.maximum(rows, 1e-6)
    return G * scale.astype(G.dtype)


def fix_norm(U: mx.array) -> mx.array:
    """Scale matrices to the Frobenius norm of semi-orthogonal ones, min(R, C)^(1/2).

    (https://arxiv.org/abs/2602.21545)
    """
    return U * (float(min(U.shape[-2:]) ** 0.5) / mx.maximum(frobenius_norm(U), 1e-6))


BETA2 = 0.9  # decay rate of NorMuon's second moment


def normalise_neurons(U: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    """Divide each neuron's update by the root of its second moment; keep the Frobenius norms.

    A neuron is a row here, or a column of wide matrices (https://arxiv.org/abs/2510.05491).

    Args:
        U: (N, R, C) float32.
        v: second moments, (N, R, 1) or (N, 1, C).

    Returns:
        The normalised updates and the new second moments.
    """
    axis = -1 if U.shape[-2] >= U.shape[-1] else -2
    mean_square = U.square().mean(axis=axis, keepdims=True)
    v = BETA2 * v + (1 - BETA2) * mean_square
    scale = mx.rsqrt(mx.maximum(v, 1e-10))
    before = mx.sqrt(mean_square.sum(axis=(-2, -1), keepdims=True))  # (N, 1, 1)
    after = mx.sqrt((mean_square * scale.square()).sum(axis=(-2, -1), keepdims=True))
    root = float(U.shape[axis] ** 0.5)  # turns roots of sums of means into norms
    return U * scale * (root * before / mx.maximum(root * after, 1e-10)), v


def frobenius_norm(G: mx.array) -> mx.array:
    """Return the Frobenius norms of (N, R, C) matrices in float32, (N, 1, 1)."""
    return mx.sqrt(sum_last(G.astype(mx.float32).square(), axes=2))[:, None, None]
