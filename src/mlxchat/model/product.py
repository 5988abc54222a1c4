"""The product of activations with a weight, and what goes with it: norm, squared ReLU, addition."""

from collections.abc import Callable
from typing import Protocol, cast

from mlxchat.autotune import fastest, remembered
from mlxchat.model.cpu import FEW_ROWS, multiply_few_rows, relu_squared
from mlxchat.model.kernels.product import KERNEL_ROWS, PRODUCT, few_rows_product
from mlxchat.model.norm import HALF_PRECISION, NORM_EPS, Normed, Pair, norm
from mlxchat.runtime import machine, mx


def product(x: mx.array, weight: mx.array, onto: mx.array | None = None) -> mx.array:
    """Return ``x @ weight.T``, and ``onto`` added.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs), in the dtype of ``x``.
        onto: (..., outputs). The kernel of the product adds it where there is one for both.
    """
    rows = x.size // x.shape[-1]
    if machine().backend == "cpu" and rows <= FEW_ROWS:
        y = multiply_few_rows(x, weight)
        return y if onto is None else onto + y
    if _takes_kernel(rows, weight, added=onto is not None, normed=False, squared=False):
        return _in_one_kernel(x, weight, onto, normed=False, squared=False)
    return _of_mlx(x, weight, onto)


def product_of_norm(x: Normed, weight: mx.array, *, squared: bool = False) -> mx.array:
    """Return ``x.normed @ weight.T``, or its squared ReLU.

    Args:
        x: (..., inputs). Where a kernel takes the norm itself, ``x.normed`` is not computed.
        weight: (outputs, inputs), in the dtype of ``x``.
        squared: whether to return ``relu_squared`` of the product.
    """
    rows = x.stream.size // x.stream.shape[-1]
    if _takes_kernel(rows, weight, added=False, normed=True, squared=squared):
        return _in_one_kernel(x.stream, weight, None, normed=True, squared=squared)
    y = product(x.normed, weight)
    return relu_squared(y) if squared else y


# ==== With gradients that lie row by row ====
#
# MLX's own gradient of a weight comes out transposed, and the optimizer reads that several times as
# slowly.


def _of_mlx(x: mx.array, weight: mx.array, onto: mx.array | None) -> mx.array:
    return cast(mx.array, _product(x, weight) if onto is None else _sum(onto, x, weight))


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


# ==== Few rows on GPUs ====


def _takes_kernel(rows: int, weight: mx.array, *, added: bool, normed: bool, squared: bool) -> bool:
    if machine().backend == "cpu" or rows > KERNEL_ROWS:
        return False
    outputs, inputs = weight.shape
    return _kernel_is_faster(
        rows, outputs, inputs, weight.dtype, added=added, normed=normed, squared=squared
    )


def _in_one_kernel(
    x: mx.array, weight: mx.array, onto: mx.array | None, *, normed: bool, squared: bool
) -> mx.array:
    @mx.custom_function
    def forward(x: mx.array, weight: mx.array, *added: mx.array) -> mx.array:
        eps = NORM_EPS if normed else None
        return few_rows_product(x, weight, *(added or [None]), norm_eps=eps, squared=squared)

    @forward.vjp
    def backward(arrays: list[mx.array], cotangent: mx.array, _: mx.array) -> list[mx.array]:
        def formula(x: mx.array, weight: mx.array, *added: mx.array) -> mx.array:
            return _formula(x, weight, *(added or [None]), normed=normed, squared=squared)

        return mx.vjp(formula, list(arrays), [cotangent])[1]

    given = [x, weight] if onto is None else [x, weight, onto]
    return cast(Callable[..., mx.array], forward)(*given)


def _formula(
    x: mx.array, weight: mx.array, onto: mx.array | None, *, normed: bool, squared: bool
) -> mx.array:
    y = _of_mlx(norm(x) if normed else x, weight, onto)
    return relu_squared(y) if squared else y


_COMPARED = 256  # results of a row that are compared in float32


@remembered
def _kernel_is_faster(
    rows: int,
    outputs: int,
    inputs: int,
    dtype: mx.Dtype,
    *,
    added: bool,
    normed: bool,
    squared: bool,
) -> bool:
    """Return whether the kernel is right here, and faster, for a product and what goes with it."""

    def example(way: _Way, outputs: int, dtype: mx.Dtype) -> Callable[[], list[mx.array]]:
        x, weight, onto = (
            mx.random.normal(shape, key=mx.random.key(i)).astype(dtype)
            for i, shape in enumerate(((1, rows, inputs), (outputs, inputs), (1, rows, outputs)))
        )
        mx.eval(x, weight, onto)
        given = onto if added else None
        return lambda: [way(x, weight, given, normed=normed, squared=squared)]

    parts = ["norm"] * normed + ["squared ReLU"] * squared + ["sum"] * added
    compared = min(outputs, _COMPARED)
    chosen = fastest(
        f"product of {rows} rows of {inputs:,} for {outputs:,}, {', '.join([*parts, str(dtype)])}",
        {
            "formula": example(_formula, outputs, dtype),
            "kernel": example(_in_one_kernel, outputs, dtype),
        },
        version=PRODUCT.revision,
        tolerance=HALF_PRECISION,
        exact={
            "formula": example(_by_hand, compared, mx.float32),
            "kernel": example(_in_one_kernel, compared, mx.float32),
        },
    )
    return chosen == "kernel"


class _Way(Protocol):
    def __call__(
        self, x: mx.array, weight: mx.array, onto: mx.array | None, *, normed: bool, squared: bool
    ) -> mx.array: ...


def _by_hand(
    x: mx.array, weight: mx.array, onto: mx.array | None, *, normed: bool, squared: bool
) -> mx.array:
    """Compute the same without a product of matrices, which CUDA rounds to fewer bits."""
    x = norm(x) if normed else x
    y = (x[..., None, :] * weight).sum(axis=-1)
    y = relu_squared(y) if squared else y
    return y if onto is None else onto + y
