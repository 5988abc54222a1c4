"""The product of activations with a weight, with gradients that lie row by row.

MLX's own gradient of a weight comes out transposed, and the optimizer reads that several times as
slowly.
"""

from typing import cast

from mlxchat.model.cpu import FEW_ROWS, multiply_few_rows
from mlxchat.model.norm import Pair
from mlxchat.runtime import machine, mx


def product(x: mx.array, weight: mx.array, onto: mx.array | None = None) -> mx.array:
    """Return ``x @ weight.T``, and ``onto`` added.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs), in the dtype of ``x``.
        onto: (..., outputs). The kernel of the product adds it where there is one for both.
    """
    if machine().backend == "cpu" and x.size <= FEW_ROWS * x.shape[-1]:
        y = multiply_few_rows(x, weight)
        return y if onto is None else onto + y
    if onto is None:
        return cast(mx.array, _product(x, weight))
    if x.ndim > 2 and x.shape[-2] == 1:
        # MLX's addmm would read the weight anew for each sequence that has one position.
        flat = (array.reshape(-1, array.shape[-1]) for array in (onto, x))
        return cast(mx.array, _sum(*flat, weight)).reshape(onto.shape)
    return cast(mx.array, _sum(onto, x, weight))


@mx.custom_function
def _product(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


@_product.vjp
def _product_vjp(primals: Pair, cotangent: mx.array, _: mx.array) -> Pair:
    return _gradients(*primals, cotangent)


@mx.custom_function
def _sum(onto: mx.array, x: mx.array, weight: mx.array) -> mx.array:
    return mx.addmm(onto, x, weight.T)


@_sum.vjp
def _sum_vjp(
    primals: tuple[mx.array, mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    return cotangent, *_gradients(*primals[1:], cotangent)


def _gradients(x: mx.array, weight: mx.array, cotangent: mx.array) -> Pair:
    rows, of_rows = (a.reshape(-1, a.shape[-1]) for a in (x, cotangent))
    return cotangent @ weight, of_rows.T @ rows
