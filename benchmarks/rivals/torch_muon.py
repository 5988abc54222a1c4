"""Muon and NorMuon in torch: the competitors' optimizers of the matrices in the blocks.

As in nanochat's commits dfc8833 and 92d63d4 matrices of one shape are stacked, (N, R, C), and the
function that makes an update of a stack of gradients is compiled where that is asked for.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

NEWTON_SCHULZ = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [  # of five steps, each with its own a, b, c
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]
LEARNING_RATE, MOMENTUM = 0.02, 0.95
WEIGHT_DECAY = 0.1  # of NorMuon
BETA2 = 0.9  # of NorMuon's second moment


def orthogonalise(G: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest orthogonal matrices of (N, R, C), roughly: five steps of quintic Newton-Schulz."""
    return _iterate(G / (_frobenius(G) + 1e-7), NEWTON_SCHULZ, dtype)


def _iterate(
    G: Tensor, coefficients: Sequence[tuple[float, float, float]], dtype: torch.dtype
) -> Tensor:
    tall = G.shape[-2] > G.shape[-1]
    X = (G.mT if tall else G).to(dtype)
    for a, b, c in coefficients:
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.mT if tall else X


def normuon(
    P: Tensor,
    G: Tensor,
    buffer: Tensor,
    moment: Tensor,
    dtype: torch.dtype,
) -> None:
    """Update (N, R, C) matrices, their momentum and their neurons' second moment in place.

    Momentum with equal norms of rows, Polar Express, NorMuon (https://arxiv.org/abs/2510.05491),
    and weight decay only where the update points the same way.
    """
    R, C = P.shape[-2:]
    buffer.lerp_(G, 1 - MOMENTUM)
    G = G.lerp(buffer, MOMENTUM).to(dtype).float()
    rows = G.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    G = G * (_frobenius(G) / R**0.5 / rows)
    U = _iterate(G / (1.01 * _frobenius(G) + 1e-6), POLAR_EXPRESS, dtype).float()
    U = U * (min(R, C) ** 0.5 / _frobenius(U).clamp_min(1e-6))
    mean_square = U.square().mean(dim=-1 if R >= C else -2, keepdim=True)
    moment.lerp_(mean_square, 1 - BETA2)
    scale = moment.clamp_min(1e-10).rsqrt()
    before = mean_square.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    U = U * scale * (before / after.clamp_min(1e-10))
    lr = LEARNING_RATE * _shape_scale(P)
    P.sub_(lr * U + lr * WEIGHT_DECAY * P * (U * P >= 0))


def _frobenius(G: Tensor) -> Tensor:
    """(N, R, C) to norms, (N, 1, 1)."""
    return cast(Tensor, torch.linalg.matrix_norm(G.float(), keepdim=True))


class Muon:
    """Momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/).

    Args:
        dtype: of matrix products.
        compiled: whether to compile what makes the update.
    """

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype, compiled: bool) -> None:
        self.stacks = by_shape(parameters)
        self.buffers = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]
        self.dtype = dtype
        self.orthogonal = torch.compile(orthogonalise, dynamic=False) if compiled else orthogonalise

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients."""
        for stack, buffer in zip(self.stacks, self.buffers, strict=True):
            g = _gradients(stack)
            buffer.lerp_(g, 1 - MOMENTUM)
            step = self.orthogonal(g.lerp_(buffer, MOMENTUM), self.dtype)
            scale = _shape_scale(g)
            for p, change in zip(stack, step, strict=True):
                p.add_(change, alpha=-LEARNING_RATE * scale)


class NorMuon:
    """NorMuon, which updates stacks of matrices by `normuon`.

    Args:
        dtype: of matrix products.
        compiled: whether to compile it.
    """

    def __init__(self, parameters: Sequence[Tensor], dtype: torch.dtype, compiled: bool) -> None:
        self.stacks = by_shape(parameters)
        self.buffers = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]
        self.moments = [buffer.new_zeros(_moment_shape(*buffer.shape)) for buffer in self.buffers]
        self.dtype = dtype
        self.update = torch.compile(normuon, dynamic=False) if compiled else normuon

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients."""
        for stack, buffer, moment in zip(self.stacks, self.buffers, self.moments, strict=True):
            matrices = torch.stack(stack)
            self.update(matrices, _gradients(stack), buffer, moment, self.dtype)
            torch._foreach_copy_(stack, list(matrices.unbind()))


def by_shape(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Those of one shape together."""

    def shape(p: Tensor) -> tuple[int, ...]:
        return tuple(p.shape)

    return [list(same) for _, same in groupby(sorted(parameters, key=shape), key=shape)]


def _gradients(stack: Sequence[Tensor]) -> Tensor:
    return torch.stack([cast(Tensor, p.grad) for p in stack])


def _shape_scale(G: Tensor) -> float:
    return float(max(1.0, G.shape[-2] / G.shape[-1]) ** 0.5)


def _moment_shape(N: int, R: int, C: int) -> tuple[int, int, int]:
    return (N, R, 1) if R >= C else (N, 1, C)
