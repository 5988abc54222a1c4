"""The product of a matrix with few rows, with what comes before and after it, in one kernel.

A position of decoding takes longer to launch its kernels than to run them. The norm of the input
is one factor of each result, which every simd group finds for itself while it reads the input.
"""

from mlxchat.model.kernels.source import SIMD, Kernel, widest
from mlxchat.runtime import mx

KERNEL_ROWS = 16  # with more, products of matrices are faster
_THREADS = 256
_BLOCK = _THREADS // SIMD  # results of a row that a block computes at a time

_BODY = """
  using Some = Pack<T, WIDTH>;
  const unsigned output = (block_id * THREADS + thread_id) / 32, lane = thread_id % 32;
  if (output >= OUTPUTS) return;
  const DEVICE T* weights = weight + size_t(output) * INPUTS;
  float sums[ROWS], squares[ROWS];
  for (int row = 0; row < ROWS; row++) sums[row] = squares[row] = 0.0f;
  for (int i = lane * WIDTH; i < INPUTS; i += 32 * WIDTH) {
    const Some ws = *reinterpret_cast<const DEVICE Some*>(weights + i);
    for (int row = 0; row < ROWS; row++) {
      const Some xs = *reinterpret_cast<const DEVICE Some*>(x + row * INPUTS + i);
      for (int j = 0; j < WIDTH; j++) {
        const float value = float(xs.values[j]);
        sums[row] += float(ws.values[j]) * value;
        if (NORMED) squares[row] += value * value;
      }
    }
  }
  for (int row = 0; row < ROWS; row++) {
    float sum = simd_sum(sums[row]);
    if (NORMED) sum *= rsqrtf(simd_sum(squares[row]) / INPUTS + eps[0]);
    if (SQUARED) sum = sum > 0.0f ? sum * sum : 0.0f;
    if (ADDED) sum += float(onto[size_t(row) * OUTPUTS + output]);
    if (lane == 0) y[size_t(row) * OUTPUTS + output] = T(sum);
  }
"""

PRODUCT = Kernel("mlxchat_product", ["x", "weight", "onto", "eps"], ["y"], _BODY)


def few_rows_product(
    x: mx.array,
    weight: mx.array,
    onto: mx.array | None,
    *,
    norm_eps: float | None,
    squared: bool,
) -> mx.array:
    """Return ``x @ weight.T``: (..., inputs) by (outputs, inputs) to (..., outputs).

    Args:
        x: at most `KERNEL_ROWS` rows in all.
        weight: in the dtype of ``x``.
        onto: (..., outputs), added to the result.
        norm_eps: takes the norm of ``x``, with this added to the mean square; None for ``x``.
        squared: takes the squared ReLU of the product, before ``onto`` is added.
    """
    outputs, inputs = weight.shape
    [y] = PRODUCT(
        [x, weight, x if onto is None else onto, mx.array([norm_eps or 0.0])],
        [((*x.shape[:-1], outputs), x.dtype)],
        blocks=-(-outputs // _BLOCK),
        threads=_THREADS,
        T=x.dtype,
        ROWS=x.size // inputs,
        INPUTS=inputs,
        OUTPUTS=outputs,
        WIDTH=widest(inputs, 16 // x.dtype.size, 4, 2),
        NORMED=int(norm_eps is not None),
        SQUARED=int(squared),
        ADDED=int(onto is not None),
    )
    return y
