"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864), as in nanochat.

Each pair of a head's dimensions is rotated by an angle that grows with the position. nanochat pairs
dimension i with dimension i + D/2 and rotates by minus theta:

    y[i]       =  x[i] * cos(theta) + x[i + D/2] * sin(theta)
    y[i + D/2] = -x[i] * sin(theta) + x[i + D/2] * cos(theta)

RoFormer rotates the other way. Scores depend on the difference of two positions only, so both work,
but weights trained with one direction need the same direction forever.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from mlxchat.autotune import fastest, remembered
from mlxchat.model.kernels import heads as kernels
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


def split_heads(
    qkv: mx.array, n_head: int, n_kv_head: int, rope: Rope
) -> tuple[mx.array, mx.array, mx.array]:
    """Return normalised and rotated queries, (B, T, n_head, D) and keys, and values as they are.

    Args:
        qkv: (B, T, n_head + 2 * n_kv_head, D), the heads of queries, keys and values.
        n_head: how many heads are of queries.
        n_kv_head: how many are of keys, and of values.
        rope: the rotation of the T positions.
    """
    heads, D = (n_head, n_kv_head), qkv.shape[-1]
    # For a single position, as in decoding, the plain way is as fast.
    in_one = qkv.shape[1] > 1 and _kernel_is_faster(D, qkv.dtype)
    return (_in_one_kernel if in_one else _formula)(qkv, heads, rope)


def _formula(
    qkv: mx.array, heads: tuple[int, int], rope: Rope
) -> tuple[mx.array, mx.array, mx.array]:
    n_head, n_qk = heads[0], sum(heads)
    qk = norm_and_rotate(qkv[:, :, :n_qk], rope)
    return qk[:, :, :n_head], qk[:, :, n_head:], qkv[:, :, n_qk:]


def norm_and_rotate(x: mx.array, rope: Rope) -> mx.array:
    """Normalise and rotate queries or keys, (B, T, H, D) to the same shape."""
    # A rotation leaves the norm alone: the order of the two does not matter.
    return apply_rope(norm(x), rope)


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


def _in_one_kernel(
    qkv: mx.array, heads: tuple[int, int], rope: Rope
) -> tuple[mx.array, mx.array, mx.array]:
    offsets = mx.array(rope.offset, mx.int32).reshape(-1)
    frequencies = mx.array(_frequencies(qkv.shape[-1], rope.base))

    @mx.custom_function
    def split(qkv: mx.array) -> list[mx.array]:
        q, k = kernels.split_forward(qkv, heads, offsets, frequencies, NORM_EPS)
        return [q, k, qkv[:, :, sum(heads) :]]

    @split.vjp
    def join(qkv: mx.array, cotangents: list[mx.array], _: object) -> mx.array:
        return kernels.split_backward(qkv, cotangents, offsets, frequencies, NORM_EPS)

    q, k, v = cast(list[mx.array], split(qkv))
    return q, k, v


_ROWS, _POSITIONS, _HEADS = 4, 2048, (6, 6)  # that are measured


@remembered
def _kernel_is_faster(D: int, dtype: mx.Dtype) -> bool:
    if machine().backend == "cpu" or D not in kernels.HEAD_DIMS:
        return False
    ways = {"formula": _formula, "kernel": _in_one_kernel}
    chosen = fastest(
        f"norm and rotation of {D} dimensions with their gradient, {dtype}",
        {name: _example(way, D, dtype) for name, way in ways.items()},
        version=f"{kernels.SPLIT.revision} {kernels.SPLIT_BACK.revision}",
        tolerance=HALF_PRECISION,
        exact={name: _example(way, D, mx.float32) for name, way in ways.items()},
    )
    return chosen == "kernel"


def _example(
    way: Callable[[mx.array, tuple[int, int], Rope], tuple[mx.array, ...]], D: int, dtype: mx.Dtype
) -> Callable[[], list[mx.array]]:
    """Return a function that splits random heads, and computes their gradient."""
    queries, keys = _HEADS

    def draw(heads: int, seed: int) -> mx.array:
        shape = (_ROWS, _POSITIONS, heads, D)
        return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)

    qkv = draw(queries + 2 * keys, 0)
    cotangents = [draw(queries, 1), draw(keys, 2), draw(keys, 3)]

    def compute() -> list[mx.array]:
        split, gradients = mx.vjp(lambda x: way(x, _HEADS, Rope(1e4, 0)), [qkv], cotangents)
        return [*split, *gradients]

    return compute
