"""The product of a few rows with a large matrix on a CPU, at the speed of its memory.

MLX has sgemm do every product, also that of one row. OpenBLAS first copies the matrix there, into
blocks, which takes longer than to read it; only where the product is small it reads the matrix as
it lies. So the matrix is cut into pieces whose products are small.
"""

from mlxchat.runtime import mx

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
