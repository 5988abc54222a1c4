"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as in nanochat.

Each pair of a head's dimensions is rotated by an angle that grows with the position. nanochat pairs
dimension i with dimension i + D/2 and rotates by minus theta:

    y[i]       =  x[i] * cos(theta) + x[i + D/2] * sin(theta)
    y[i + D/2] = -x[i] * sin(theta) + x[i + D/2] * cos(theta)

RoFormer rotates the other way. Scores depend on the difference of two positions only, so both work,
but weights trained with one direction need the same direction forever.
"""

from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np

from mlxchat.runtime import mx


class Rope(NamedTuple):
    """The rotation of a stretch of consecutive positions.

    Attributes:
        base: theta is position * base ** (-2 i / D) for pair i.
        offset: the first position. When decoding one position of several sequences, each sequence
            has its own: (B,).
    """

    base: float
    offset: int | mx.array


def apply_rope(x: mx.array, rope: Rope) -> mx.array:
    """Rotate queries or keys, (B, T, H, D) to the same shape.

    Training takes one element-wise pass in each direction, on the layout that the projections
    produce: `mx.fast.rope` wants heads before positions, and takes four times as long on CUDA.
    For a single position the two layouts are the same, and one fused kernel is best.
    """
    B, T, H, D = x.shape
    if T > 1:
        cos, sin = _cos_sin(T, cast(int, rope.offset), D, rope.base)
        return cast(mx.array, _rotate(x, cos, sin))
    y = mx.fast.rope(
        x.reshape(B, H, T, D), D, traditional=False, base=rope.base, scale=-1.0, offset=rope.offset
    )  # (B, H, 1, D); a scale of -1 rotates by minus theta
    return y.reshape(x.shape)  # (B, 1, H, D)


@lru_cache(maxsize=2)
def _cos_sin(T: int, offset: int, D: int, base: float) -> tuple[mx.array, mx.array]:
    """Return float32 cosines, (T, 1, 1, D/2), and sines for both halves, (T, 1, 2, D/2).

    The sines of the second half are negative, so that `_rotate` is one formula for both halves.
    """
    frequencies = np.float32(base) ** (-np.arange(0, D, 2, dtype=np.float32) / D)  # (D/2,)
    theta = np.arange(offset, offset + T, dtype=np.float32)[:, None] * frequencies  # (T, D/2)
    cos, sin = np.cos(theta), np.sin(theta)
    return mx.array(cos[:, None, None]), mx.array(np.stack([sin, -sin], axis=1)[:, None])


@mx.custom_function
def _rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    halves = x.reshape(*x.shape[:-1], 2, -1)  # (B, T, H, 2, D/2)
    rotated = halves * cos + halves[..., ::-1, :] * sin
    return rotated.astype(x.dtype).reshape(x.shape)  # (B, T, H, D)


@_rotate.vjp
def _rotate_vjp(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Rotate the gradient back: the transpose of a rotation is the opposite rotation."""
    _, cos, sin = primals
    gradient = cast(mx.array, _rotate(cotangent, cos, -sin))
    return gradient, mx.zeros_like(cos), mx.zeros_like(sin)
