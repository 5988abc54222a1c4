"""The norm of the residual stream, without learned weights."""

from collections.abc import Callable
from typing import NamedTuple, cast

from mlxchat.autotune import fastest, remembered
from mlxchat.model.kernels import norm as kernels
from mlxchat.model.kernels.source import SIMD
from mlxchat.runtime import machine, mx

NORM_EPS = 1.1920929e-07  # float32's machine epsilon, which torch's rms_norm uses by default
HALF_PRECISION = 2e-2  # relative difference of gradients that are rounded to bfloat16 on the way
_MEASURED = {"cuda": 2**25, "metal": 2**22}  # numbers, enough to take longer than a launch


class Normed(NamedTuple):
    """The residual stream, (..., C), and its norm: a layer reads the one and adds to the other."""

    normed: mx.array
    stream: mx.array


Pair = tuple[mx.array, mx.array]
Triple = tuple[mx.array, mx.array, mx.array]
Quadruple = tuple[mx.array, mx.array, mx.array, mx.array]


def norm(x: mx.array) -> mx.array:
    """Divide vectors, (..., C), by the root of their mean square."""
    return mx.fast.rms_norm(x, None, NORM_EPS)


def norm_and_stream(x: mx.array) -> Normed:
    """Return ``norm(x)`` and ``x``, (..., C): one kernel then computes the gradient of both."""
    return Normed(*_norm_kernel(x)) if _takes_kernel(x) else Normed(norm(x), x)


def mix_and_norm(x: mx.array, x0: mx.array, a: mx.array, b: mx.array) -> tuple[Normed, mx.array]:
    """Mix two streams; returns the mixture with its norm, and ``x0``, (..., C) each.

    One kernel computes the gradients of all. Take the ``x0`` returned for the next mixture, and
    each adds to its gradient; otherwise those of all mixtures would be held and added at the end.

    Args:
        x, x0: (..., C) in the compute dtype.
        a, b: the weights of ``x`` and ``x0``, (1,) in float32.
    """
    mix = _mix_kernel if _takes_kernel(x) else _mix_formula
    normed, mixed, x0 = mix(x, x0, a, b)
    return Normed(normed, mixed), x0


def _mix_formula(x: mx.array, x0: mx.array, a: mx.array, b: mx.array) -> Triple:
    mixed = (a * x + b * x0).astype(x.dtype)  # in float32
    return norm(mixed), mixed, x0


# ==== With kernels ====


@mx.custom_function
def _norm_in_one(x: mx.array) -> Pair:
    return kernels.norm_forward(x, NORM_EPS), x


@_norm_in_one.vjp
def _norm_vjp(x: mx.array, cotangents: Pair, _: object) -> mx.array:
    return kernels.norm_backward(x, *cotangents, NORM_EPS)


def _norm_kernel(x: mx.array) -> Pair:
    return cast(Pair, _norm_in_one(x))


@mx.custom_function
def _mix_in_one(x: mx.array, x0: mx.array, a: mx.array, b: mx.array) -> Triple:
    mixed, y = kernels.mix_forward(x, x0, a, b, NORM_EPS)
    return y, mixed, x0


@_mix_in_one.vjp
def _mix_vjp(primals: Quadruple, cotangents: Triple, _: object) -> Quadruple:
    x, x0, a, b = primals
    return kernels.mix_backward(x, x0, list(cotangents), a, b, NORM_EPS)


def _mix_kernel(x: mx.array, x0: mx.array, a: mx.array, b: mx.array) -> Triple:
    return cast(Triple, _mix_in_one(x, x0, a, b))


# ==== Which is faster ====


def _takes_kernel(x: mx.array) -> bool:
    """Return whether to take the kernels; a single position, as in decoding, is too little work."""
    return x.shape[-2] > 1 and _kernel_is_faster(x.shape[-1], x.dtype)


@remembered
def _kernel_is_faster(C: int, dtype: mx.Dtype) -> bool:
    """Return whether the kernels are right here, and faster. The mixture's stand for both."""
    if machine().backend == "cpu" or C % SIMD:
        return False
    all_four = (kernels.NORM, kernels.NORM_BACK, kernels.MIX, kernels.MIX_BACK)
    chosen = fastest(
        f"norm of {C} channels with its gradient, {dtype}",
        {"formula": _example(C, dtype, False), "kernel": _example(C, dtype, True)},
        version=" ".join(kernel.revision for kernel in all_four),
        tolerance=HALF_PRECISION,
        exact={
            "formula": _example(C, mx.float32, False),
            "kernel": _example(C, mx.float32, True),
        },
    )
    return chosen == "kernel"


def _example(C: int, dtype: mx.Dtype, kernel: bool) -> Callable[[], list[mx.array]]:
    """Return a function that mixes random vectors, normalises them twice, and differentiates."""
    rows = _MEASURED[machine().backend] // C
    x, x0, *cotangents = (
        mx.random.normal((rows, C), key=mx.random.key(i)).astype(dtype) for i in range(5)
    )
    # Or the gradients of the weights would be sums whose terms cancel, and all of them rounding.
    cotangents[1] += x + x0
    weights = mx.array([1.1]), mx.array([0.2])

    def mix(x: mx.array, x0: mx.array, a: mx.array, b: mx.array) -> Triple:
        normed, mixed, x0 = (_mix_kernel if kernel else _mix_formula)(x, x0, a, b)
        again, mixed = _norm_kernel(mixed) if kernel else (norm(mixed), mixed)
        return normed + again, mixed, x0

    def compute() -> list[mx.array]:
        results, gradients = mx.vjp(mix, [x, x0, *weights], cotangents)
        return [*results, *gradients]

    return compute
