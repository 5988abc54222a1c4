"""Operations that MLX does slowly or inexactly on CPUs.

exp, tanh, log-sum-exp, the squared ReLU and some products are slow; long sums are inexact.

MLX calls the scalar library functions on CPUs, 10 ns an element, which made the loss the largest
part of a training step. A polynomial that the compiler vectorises inside `mx.compile` takes a ninth
of that. On GPUs these functions are MLX's own.
"""

import math
import os
from collections.abc import Callable
from functools import cache, partial
from typing import cast

from mlxchat.autotune import fastest, remembered
from mlxchat.runtime import machine, mx
from mlxchat.streams import STREAMS, in_parts

# ==== Elementary functions ====

_ROUND = 1.5 * 2.0**23  # adding it to a float32 leaves no bits for a fraction: it rounds
_EXPONENT_BITS = 23  # the lowest bit of a float32's exponent
_ONE = 0x3F800000  # the bits of 1.0
_TAYLOR = [math.log(2) ** k / math.factorial(k) for k in range(7)]  # 2**x around 0


def exp(x: mx.array) -> mx.array:
    """Return e**x for float32 between -87 and 87.

    The relative error is below 4e-6, and below 1.2e-6 for x between -15 and 15.
    """
    if machine().backend != "cpu":
        return mx.exp(x)
    return cast(mx.array, _polynomial_exp(x))


def tanh(x: mx.array) -> mx.array:
    """Return the hyperbolic tangent of float32, with an absolute error below 3e-7."""
    if machine().backend != "cpu":
        return mx.tanh(x)
    return 1 - 2 / (1 + exp(mx.clip(2 * x, -40.0, 40.0)))  # beyond 20, tanh is 1 in float32


def log_sum_exp(x: mx.array) -> mx.array:
    """Return log(sum(exp(x))) over the last axis, for float32 between -87 and 80.

    Within those bounds nothing overflows: no maximum need be subtracted first, which saves a pass.
    """
    if machine().backend != "cpu":
        return mx.logsumexp(x, axis=-1)
    return mx.log(sum_last(exp(x), axes=1))


@mx.custom_function
def _polynomial_exp(x: mx.array) -> mx.array:
    """Return 2**n * 2**f for x = (n + f) * log(2), with n whole and f in [-1/2, 1/2].

    n becomes the exponent of the result; a Taylor polynomial gives 2**f.
    """
    y = x * math.log2(math.e)
    rounded = y + _ROUND
    f = y - (rounded - _ROUND)
    c, f2 = _TAYLOR, f * f
    power = (c[0] + c[1] * f) + f2 * (c[2] + c[3] * f) + f2 * f2 * (c[4] + c[5] * f + f2 * c[6])
    n = rounded.view(mx.int32)
    return power * ((n << _EXPONENT_BITS) + _ONE).view(mx.float32)


@_polynomial_exp.vjp
def _polynomial_exp_vjp(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output


# ==== Sums ====

SUM_BLOCK = 64  # numbers that are added in float32


def sum_last(x: mx.array, axes: int) -> mx.array:
    """Return the float32 sum of float32 numbers over the last ``axes`` axes.

    On CPUs MLX adds one number after another, rounding to float32 each time: the mean of a million
    equal numbers is off by up to 1%. Here only blocks of `SUM_BLOCK` are added in float32, and
    their sums in float64, which GPUs do not have and do not need.
    """
    over = tuple(range(-axes, 0))
    if machine().backend != "cpu":
        return x.sum(axis=over)
    whole = x.shape[-1] // SUM_BLOCK * SUM_BLOCK
    sums = x[..., :whole].reshape(*x.shape[:-1], -1, SUM_BLOCK).sum(axis=-1)
    if whole < x.shape[-1]:
        sums = mx.concatenate([sums, x[..., whole:]], axis=-1)
    return sums.astype(mx.float64).sum(axis=over).astype(mx.float32)


# ==== Squared ReLU ====


def relu_squared(x: mx.array) -> mx.array:
    """Return max(x, 0)**2 (https://arxiv.org/abs/2109.08668).

    On GPUs only the output is held for the gradient, which takes its square root. On CPUs a square
    root is a slow scalar call too, so the input is held as well.
    """
    return cast(mx.array, _relu_squared(x))


@mx.custom_function
def _relu_squared(x: mx.array) -> mx.array:
    return _square_of_positive(x) if machine().backend == "cpu" else _in_one_kernel(x)


def _square_of_positive(x: mx.array) -> mx.array:
    return mx.maximum(x, 0).square()


_in_one_kernel = mx.compile(_square_of_positive)


@_relu_squared.vjp
def _relu_squared_vjp(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    positive = mx.maximum(x, 0) if machine().backend == "cpu" else mx.sqrt(y)
    return positive * cotangent * 2


# ==== The product of a few rows with a large matrix ====
#
# MLX calls sgemm for every product on CPUs, even that of a single row. OpenBLAS then copies the
# matrix into blocks first, which takes longer than reading it; only for small products does it read
# the matrix where it lies. So the matrix is split into pieces whose products are small.
#
# On some processors one thread reads as fast as the memory allows, on others two read twice as
# fast: there the matrix is read by two streams.

FEW_ROWS = 4  # with more rows the copy, which both cores make, pays off
SMALL_OPERATIONS = 100**3  # both limits: OpenBLAS's sgemm_small_kernel_permit_skylakex.c
SMALL_RESULTS = 1200
LEAST_DIVIDED = 2**22  # bytes of a matrix; two streams read a smaller one before they have met
MEASURED_BYTES = 2**26  # of matrices that are read to measure: more than caches hold


def multiply_few_rows(x: mx.array, weight: mx.array) -> mx.array:
    """Return ``x @ weight.T``: (..., inputs) by (outputs, inputs) to (..., outputs)."""
    if _reading_streams(x.size // x.shape[-1], *weight.shape) == 1:
        return multiply_in_pieces(x, weight)
    return multiply_on_streams(x, weight)


@remembered
def _reading_streams(rows: int, outputs: int, inputs: int) -> int:
    """Return how many streams read an (outputs, inputs) matrix fastest, by measurement."""
    size = 4 * outputs * inputs
    if size < LEAST_DIVIDED or (os.cpu_count() or 1) < STREAMS:
        return 1

    @cache
    def arrays() -> tuple[mx.array, mx.array]:
        height = min(outputs, MEASURED_BYTES // (4 * inputs))
        x, weights = mx.ones((rows, inputs)), mx.ones((MEASURED_BYTES // size or 1, height, inputs))
        mx.eval(x, weights)
        return x, weights

    def on(multiply: Callable[[mx.array, mx.array], mx.array]) -> list[mx.array]:
        x, weights = arrays()
        return [multiply(x, weight) for weight in weights]

    ways = {
        "one stream": partial(on, multiply_in_pieces),
        "two streams": partial(on, multiply_on_streams),
    }
    question = f"products of {rows} rows with a {outputs} x {inputs} matrix"
    return STREAMS if fastest(question, ways) == "two streams" else 1


def multiply_on_streams(x: mx.array, weight: mx.array) -> mx.array:
    """Return what `multiply_few_rows` does, each half of the outputs computed by a stream."""
    half = len(weight) // STREAMS
    first, second = weight[:half], weight[half:]
    halves = in_parts([partial(multiply_in_pieces, x, part) for part in (first, second)])
    return mx.concatenate(halves, axis=-1)


def multiply_in_pieces(x: mx.array, weight: mx.array) -> mx.array:
    """Return what `multiply_few_rows` does, by products that OpenBLAS takes for small."""
    outputs, inputs = weight.shape
    rows = x.size // inputs
    parts = weight.reshape(pieces(rows, outputs, inputs), -1, inputs).swapaxes(1, 2)
    y = x.reshape(rows, inputs) @ parts  # (pieces, rows, outputs / pieces)
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], outputs)


def pieces(rows: int, outputs: int, inputs: int) -> int:
    """Return into how many equal pieces, a power of two, to split an (outputs, inputs) matrix.

    It is 1 if the product with ``rows`` rows is small already, or if no split makes it small.
    """
    count = 1
    while outputs % count == 0:
        results = rows * outputs // count
        if results <= SMALL_RESULTS and results * inputs <= SMALL_OPERATIONS:
            return count
        count *= 2
    return 1
