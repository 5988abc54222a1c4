"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as nanochat has them.

Dimension i turns with dimension i + D/2, by minus theta.
"""

from typing import NamedTuple, cast

from mlxchat.runtime import mx


class Rotation(NamedTuple):
    """By how much T positions turn."""

    base: float
    offset: int  # positions before them
    cos: mx.array  # (T, 1, 1, D/2) float32
    sin: mx.array  # (T, 1, 2, D/2) float32, the second half negative


def rotation(T: int, offset: int, head_dim: int, base: float) -> Rotation:
    """Of T positions that follow ``offset`` others."""
    frequencies = base ** (-mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)
    positions = mx.arange(offset, offset + T, dtype=mx.float32)
    theta = positions[:, None] * frequencies  # (T, D/2)
    cos, sin = mx.cos(theta)[:, None, None], mx.sin(theta)
    return Rotation(base, offset, cos, mx.stack([sin, -sin], axis=1)[:, None])


def rotate(x: mx.array, by: Rotation) -> mx.array:
    """Turn (B, T, H, D) queries or keys.

    In training one element-wise pass in each direction, on the layout that the projections make;
    `mx.fast.rope` wants heads before positions, and takes four times as long on CUDA. A single
    position has no such layout: there it is the one kernel that decoding wants.
    """
    B, T, H, D = x.shape
    if T > 1:
        return cast(mx.array, _rotate(x, by.cos, by.sin))
    turned = mx.fast.rope(
        x.reshape(B, H, T, D), D, traditional=False, base=by.base, scale=-1.0, offset=by.offset
    )
    return turned.reshape(x.shape)


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
    back = cast(mx.array, _rotate(cotangent, cos, -sin))
    return back, mx.zeros_like(cos), mx.zeros_like(sin)
