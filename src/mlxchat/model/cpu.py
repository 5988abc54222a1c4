"""exp, tanh, log-sum-exp and the squared ReLU, fast on CPUs too.

There MLX calls the scalar library functions, 10 ns an element, which made the loss the largest part
of a training step. A polynomial that the compiler vectorises takes a ninth of that inside
`mx.compile`. On GPUs these are MLX's own.

The product of a few rows with a large matrix on a CPU, at the speed of its memory.

MLX has sgemm do every product, also that of one row. OpenBLAS first copies the matrix there, into
blocks, which takes longer than to read it; only where the product is small it reads the matrix as
it lies. So the matrix is cut into pieces whose products are small.
"""

import math
from typing import cast

from mlxchat.runtime import machine, mx

_ROUND = 1.5 * 2.0**23  # adding it leaves no bits for a fraction: the sum is rounded
_EXPONENT_BITS = 23  # where the exponent begins in a float32
_ONE = 0x3F800000  # the bits of 1.0
_TAYLOR = [math.log(2) ** k / math.factorial(k) for k in range(7)]  # of 2**x around 0


def exp(x: mx.array) -> mx.array:
    """e to the x for float32 between -87 and 87, to 4e-6 relative; to 1.2e-6 within 15 of 0."""
    if machine().backend != "cpu":
        return mx.exp(x)
    return cast(mx.array, _polynomial_exp(x))


def tanh(x: mx.array) -> mx.array:
    """The hyperbolic tangent, to 3e-7 absolute, of float32."""
    if machine().backend != "cpu":
        return mx.tanh(x)
    return 1 - 2 / (1 + exp(mx.clip(2 * x, -40.0, 40.0)))  # float32 cannot tell more from 1


def log_sum_exp(x: mx.array) -> mx.array:
    """The logarithm of the sum of exp over the last axis, of float32 between -87 and 80."""
    if machine().backend != "cpu":
        return mx.logsumexp(x, axis=-1)
    return mx.log(exp(x).sum(axis=-1))  # with nothing subtracted before exp, one pass less


def relu_squared(x: mx.array) -> mx.array:
    """The square of the positive part (https://arxiv.org/abs/2109.08668).

    On GPUs only the output is kept for the gradient. On CPUs a root is a scalar call like the
    others, so there the input is kept too.
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


@mx.custom_function
def _polynomial_exp(x: mx.array) -> mx.array:
    """2**n * 2**f, n whole and f in [-1/2, 1/2]: n goes into the exponent, f into a polynomial."""
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


FEW_ROWS = 4  # more of them repay the copy, which both cores make
SMALL_OPERATIONS = 100**3  # both from OpenBLAS's sgemm_small_kernel_permit_skylakex.c
SMALL_RESULTS = 1200


def multiply_few_rows(x: mx.array, weight: mx.array) -> mx.array:
    """``x @ weight.T``: (..., inputs) by (outputs, inputs) to (..., outputs)."""
    outputs, inputs = weight.shape
    rows = x.size // inputs
    parts = weight.reshape(pieces(rows, outputs, inputs), -1, inputs).swapaxes(1, 2)
    y = x.reshape(rows, inputs) @ parts  # (pieces, rows, outputs / pieces)
    return y.swapaxes(0, 1).reshape(*x.shape[:-1], outputs)


def pieces(rows: int, outputs: int, inputs: int) -> int:
    """Into how many equal pieces to cut an (outputs, inputs) matrix, a power of two.

    1 where the product with ``rows`` rows is small, or cannot be made so.
    """
    count = 1
    while outputs % count == 0:
        results = rows * outputs // count
        if results <= SMALL_RESULTS and results * inputs <= SMALL_OPERATIONS:
            return count
        count *= 2
    return 1
