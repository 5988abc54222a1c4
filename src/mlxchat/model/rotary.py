"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as nanochat has them.

Dimension i turns with dimension i + D/2, by minus theta. On (B, T, H, D), as the projections make
it, and one element-wise pass in each direction, where `mx.fast.rope` wants heads before positions
and takes four times as long on CUDA.
"""

from typing import NamedTuple, cast

from mlxchat.runtime import mx


class Rotation(NamedTuple):
    """By how much T positions turn, float32."""

    cos: mx.array  # (T, 1, 1, D/2)
    sin: mx.array  # (T, 1, 2, D/2), the second half negative


def rotation(T: int, offset: int | mx.array, head_dim: int, base: float) -> Rotation:
    """Of T positions that follow ``offset`` others."""
    frequencies = base ** (-mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)
    positions = offset + mx.arange(T, dtype=mx.float32)
    theta = positions[:, None] * frequencies  # (T, D/2)
    sin = mx.sin(theta)
    return Rotation(mx.cos(theta)[:, None, None], mx.stack([sin, -sin], axis=1)[:, None])


def rotate(x: mx.array, by: Rotation) -> mx.array:
    """Turn (B, T, H, D) queries or keys."""
    return cast(mx.array, _rotate(x, *by))


@mx.custom_function
def _rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    halves = x.reshape(*x.shape[:-1], 2, -1)
    turned = halves * cos + halves[..., ::-1, :] * sin
    return turned.astype(x.dtype).reshape(x.shape)


@_rotate.vjp
def _turn_back(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    _, cos, sin = primals
    back = rotate(cotangent, Rotation(cos, -sin))
    return back, mx.zeros_like(cos), mx.zeros_like(sin)
