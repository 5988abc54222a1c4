"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as in nanochat.

Each pair of a head's dimensions is rotated by an angle that grows with the position. nanochat pairs
dimension i with dimension i + D/2 and rotates by minus theta:

    y[i]       =  x[i] * cos(theta) + x[i + D/2] * sin(theta)
    y[i + D/2] = -x[i] * sin(theta) + x[i + D/2] * cos(theta)

RoFormer rotates the other way. Scores depend on the difference of two positions only, so both work,
but weights trained with one direction need the same direction forever.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from mlxchat.autotune import fastest
from mlxchat.model.kernels import norm as kernels
from mlxchat.model.norm import HALF_PRECISION, NORM_EPS, norm
from mlxchat.runtime import machine, mx


class Rope(NamedTuple):
    """The rotation of a stretch of consecutive positions.

    Attributes:
        base: theta is position * base ** (-2 i / D) for pair i.
        offset: the first position. When decoding one position of several sequences, each sequence
            has its own: (B,).
    """

    base: float
    offset: int | mx.array


def norm_and_rotate(x: mx.array, heads: int, rope: Rope) -> mx.array:
    """Normalise and rotate queries and keys.

    Args:
        x: (B, T, all heads, D).
        heads: how many heads, from the first on, are normalised and rotated; the others, values,
            are left out.
        rope: the rotation of the T positions.

    Returns:
        (B, T, heads, D).
    """
    if not _kernel_is_faster(x.shape[-1], x.dtype):
        return _formula(x, heads, rope)
    offsets = mx.array(rope.offset, mx.int32).reshape(-1)  # (1,) or (B,)
    return _in_one_kernel(x, heads, offsets, rope.base)


def _formula(x: mx.array, heads: int, rope: Rope) -> mx.array:
    # A rotation leaves the norm alone: the order of the two does not matter.
    return apply_rope(norm(x[:, :, :heads]), rope)


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


def _frequencies(D: int, base: float) -> npt.NDArray[np.float32]:
    """Return the angle of each pair of dimensions at position 1, (D/2,)."""
    frequencies: npt.NDArray[np.float32] = np.float32(base) ** (
        -np.arange(0, D, 2, dtype=np.float32) / D
    )
    return frequencies


@lru_cache(maxsize=2)
def _cos_sin(T: int, offset: int, D: int, base: float) -> tuple[mx.array, mx.array]:
    """Return float32 cosines, (T, 1, 1, D/2), and sines for both halves, (T, 1, 2, D/2).

    The sines of the second half are negative, so that `_rotate` is one formula for both halves.
    """
    theta = np.arange(offset, offset + T, dtype=np.float32)[:, None] * _frequencies(D, base)
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


# ==== Norm and rotation in one kernel ====


def _in_one_kernel(x: mx.array, heads: int, offsets: mx.array, base: float) -> mx.array:
    frequencies = mx.array(_frequencies(x.shape[-1], base))

    @mx.custom_function
    def turn(x: mx.array) -> mx.array:
        return kernels.norm_rotate_forward(x, heads, offsets, frequencies, NORM_EPS)

    @turn.vjp
    def turn_back(x: mx.array, cotangent: mx.array, _: object) -> mx.array:
        if heads < x.shape[2]:
            raise NotImplementedError("only inference leaves heads out")
        return kernels.norm_rotate_backward(x, cotangent, offsets, frequencies, NORM_EPS)

    return cast(mx.array, turn(x))


_ROWS, _POSITIONS, _HEADS = 4, 2048, 6  # that are measured


@cache
def _kernel_is_faster(D: int, dtype: mx.Dtype) -> bool:
    if machine().backend == "cpu" or D not in kernels.HEAD_DIMS:
        return False
    base = 10_000.0

    def formula(x: mx.array) -> mx.array:
        return _formula(x, _HEADS, Rope(base, 0))

    def kernel(x: mx.array) -> mx.array:
        return _in_one_kernel(x, _HEADS, mx.array([0], mx.int32), base)

    ways = {"formula": formula, "kernel": kernel}
    chosen = fastest(
        f"norm and rotation of {D} dimensions with their gradient, {dtype}, "
        f"{kernels.NORM_ROTATE_BACK.revision}",
        {name: _example(way, D, dtype) for name, way in ways.items()},
        tolerance=HALF_PRECISION,
        exact={name: _example(way, D, mx.float32) for name, way in ways.items()},
    )
    return chosen == "kernel"


def _example(
    way: Callable[[mx.array], mx.array], D: int, dtype: mx.Dtype
) -> Callable[[], list[mx.array]]:
    """Return a function that computes random queries, and their gradient."""
    shape = (_ROWS, _POSITIONS, _HEADS, D)
    x, cotangent = (mx.random.normal(shape, key=mx.random.key(i)).astype(dtype) for i in range(2))

    def compute() -> list[mx.array]:
        y, gradients = mx.vjp(way, [x], [cotangent])
        return [*y, *gradients]

    return compute
