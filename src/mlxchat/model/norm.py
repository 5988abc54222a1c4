"""The norm of the residual stream, without learnt weights."""

from collections.abc import Callable
from functools import cache
from typing import cast

from mlxchat.autotune import fastest
from mlxchat.model.kernels import norm as kernels
from mlxchat.model.kernels.source import SIMD
from mlxchat.runtime import machine, mx

NORM_EPS = 1.1920929e-07  # float32's machine epsilon, which torch's rms_norm uses by default
HALF_PRECISION = 2e-2  # relative difference of gradients that are rounded to bfloat16 on the way
_ROWS = 8192  # that are measured

Pair = tuple[mx.array, mx.array]


def norm(x: mx.array) -> mx.array:
    """Divide vectors, (..., C), by the root of their mean square."""
    return mx.fast.rms_norm(x, None, NORM_EPS)


def norm_and_stream(x: mx.array) -> Pair:
    """Return ``norm(x)`` and ``x``, (..., C), for a layer that reads the one and adds to the other.

    They come together because one kernel then computes the gradient of both.
    """
    return _in_one_kernel(x) if _kernel_is_faster(x.shape[-1], x.dtype) else _formula(x)


def _formula(x: mx.array) -> Pair:
    return norm(x), x


@mx.custom_function
def _kernel(x: mx.array) -> Pair:
    return kernels.norm_forward(x, NORM_EPS), x


@_kernel.vjp
def _kernel_vjp(x: mx.array, cotangents: Pair, _: object) -> mx.array:
    d_normed, d_stream = cotangents
    return kernels.norm_backward(x, d_normed, d_stream, NORM_EPS)


def _in_one_kernel(x: mx.array) -> Pair:
    return cast(Pair, _kernel(x))


@cache
def _kernel_is_faster(C: int, dtype: mx.Dtype) -> bool:
    if machine().backend == "cpu" or C % SIMD:
        return False
    ways = {"formula": _formula, "kernel": _in_one_kernel}
    chosen = fastest(
        f"norm of {C} channels with its gradient, {dtype}, {kernels.NORM_BACK.revision}",
        {name: _example(way, C, dtype) for name, way in ways.items()},
        tolerance=HALF_PRECISION,
        exact={name: _example(way, C, mx.float32) for name, way in ways.items()},
    )
    return chosen == "kernel"


def _example(
    way: Callable[[mx.array], Pair], C: int, dtype: mx.Dtype
) -> Callable[[], list[mx.array]]:
    """Return a function that computes the norm of random vectors, and the gradient."""
    x, *cotangents = [
        mx.random.normal((_ROWS, C), key=mx.random.key(i)).astype(dtype) for i in range(3)
    ]

    def compute() -> list[mx.array]:
        (y, _), gradients = mx.vjp(way, [x], cotangents)
        return [y, *gradients]

    return compute
