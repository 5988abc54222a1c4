"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as nanochat has them.

Dimension i turns with dimension i + D/2, by minus theta.
"""

from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np

from mlxchat.runtime import mx


class Rotation(NamedTuple):
    """By how much positions turn."""

    base: float
    offset: int | mx.array  # positions before them; (B,) of each row, where there is one position


def rotate(x: mx.array, by: Rotation) -> mx.array:
    """Turn (B, T, H, D) queries or keys.

    In training one element-wise pass in each direction, on the layout that the projections make;
    `mx.fast.rope` wants heads before positions, and takes four times as long on CUDA. A single
    position has no such layout: there it is the one kernel that decoding wants.
    """
    B, T, H, D = x.shape
    if T > 1:
        return cast(mx.array, _rotate(x, *_table(T, cast(int, by.offset), D, by.base)))
    turned = mx.fast.rope(
        x.reshape(B, H, T, D), D, traditional=False, base=by.base, scale=-1.0, offset=by.offset
    )
    return turned.reshape(x.shape)


@lru_cache(maxsize=2)
def _table(T: int, offset: int, D: int, base: float) -> tuple[mx.array, mx.array]:
    """Cosines (T, 1, 1, D/2) and sines (T, 1, 2, D/2), the second half negative; float32."""
    frequencies = np.float32(base) ** (-np.arange(0, D, 2, dtype=np.float32) / D)
    theta = np.arange(offset, offset + T, dtype=np.float32)[:, None] * frequencies  # (T, D/2)
    cos, sin = np.cos(theta), np.sin(theta)
    return mx.array(cos[:, None, None]), mx.array(np.stack([sin, -sin], axis=1)[:, None])


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
