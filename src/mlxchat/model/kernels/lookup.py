"""Rows of a float32 table in half precision, read and rounded in one pass."""

from mlxchat.model.kernels.source import SIMD, Kernel, widest
from mlxchat.runtime import mx

_THREADS = 256
_BLOCK = _THREADS // SIMD  # rows that a block copies at a time

_BODY = """
  const unsigned number = (block_id * THREADS + thread_id) / 32, lane = thread_id % 32;
  if (number >= unsigned(count[0])) return;
  const DEVICE float* row = table + size_t(ids[number]) * C;
  DEVICE T* out = rows + size_t(number) * C;
  for (int i = lane * WIDTH; i < C; i += 32 * WIDTH) {
    const Pack<float, WIDTH> some = *reinterpret_cast<const DEVICE Pack<float, WIDTH>*>(row + i);
    Pack<T, WIDTH> rounded;
    for (int j = 0; j < WIDTH; j++) rounded.values[j] = T(some.values[j]);
    *reinterpret_cast<DEVICE Pack<T, WIDTH>*>(out + i) = rounded;
  }
"""

LOOKUP = Kernel("mlxchat_lookup", ["table", "ids", "count"], ["rows"], _BODY)


def look_up_forward(table: mx.array, ids: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return rows of a float32 table, (V, C), as (..., C) of another dtype.

    Args:
        table: (V, C) in float32.
        ids: (...) integers from 0 to V - 1.
        dtype: of the result.
    """
    C = table.shape[1]
    [rows] = LOOKUP(
        [table, ids.astype(mx.int32), mx.array([ids.size], mx.int32)],
        [((*ids.shape, C), dtype)],
        blocks=-(-ids.size // _BLOCK),
        threads=_THREADS,
        T=dtype,
        C=C,
        WIDTH=widest(C, 4, 2),
    )
    return rows
