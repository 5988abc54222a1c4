"""RMS norms without weights, alone and with the rotation of queries and keys, forward and backward.

32 threads in step compute a vector, so that its sum of squares needs no memory of the block.
"""

from mlxchat.model.kernels.source import SIMD, Kernel, widest
from mlxchat.runtime import mx

_THREADS = 256
_BLOCK = _THREADS // SIMD  # vectors that a block computes at a time

# ==== The residual stream ====

_READ_VECTOR = """
  using Some = Pack<T, WIDTH>;
  constexpr int EACH = C / (32 * WIDTH);
  const unsigned number = (block * THREADS + thread) / 32, lane = thread % 32;
  if (number >= unsigned(count[0])) return;
  const size_t start = size_t(number) * C + lane * WIDTH;
  Some xs[EACH];
  float squares = 0.0f;
  for (int i = 0; i < EACH; i++) {
    xs[i] = *reinterpret_cast<const DEVICE Some*>(x + start + i * 32 * WIDTH);
    for (int j = 0; j < WIDTH; j++) squares += float(xs[i].values[j]) * float(xs[i].values[j]);
  }
  const float scale = rsqrtf(simd_sum(squares) / C + eps[0]);
"""

_FORWARD = """
  for (int i = 0; i < EACH; i++) {
    for (int j = 0; j < WIDTH; j++) xs[i].values[j] = T(float(xs[i].values[j]) * scale);
    *reinterpret_cast<DEVICE Some*>(y + start + i * 32 * WIDTH) = xs[i];
  }
"""

_BACKWARD = """
  Some ds[EACH];
  float product = 0.0f;
  for (int i = 0; i < EACH; i++) {
    ds[i] = *reinterpret_cast<const DEVICE Some*>(d_y + start + i * 32 * WIDTH);
    for (int j = 0; j < WIDTH; j++) product += float(xs[i].values[j]) * float(ds[i].values[j]);
  }
  const float along = simd_sum(product) / C * scale * scale;
  for (int i = 0; i < EACH; i++) {
    Some beside = *reinterpret_cast<const DEVICE Some*>(d_stream + start + i * 32 * WIDTH);
    for (int j = 0; j < WIDTH; j++) {
      const float d = scale * (float(ds[i].values[j]) - along * float(xs[i].values[j]));
      beside.values[j] = T(float(beside.values[j]) + d);
    }
    *reinterpret_cast<DEVICE Some*>(d_x + start + i * 32 * WIDTH) = beside;
  }
"""

_COUNT_EPS = ["count", "eps"]
NORM = Kernel("mlxchat_norm", ["x", *_COUNT_EPS], ["y"], _READ_VECTOR + _FORWARD)
NORM_BACK = Kernel(
    "mlxchat_norm_back", ["x", "d_y", "d_stream", *_COUNT_EPS], ["d_x"], _READ_VECTOR + _BACKWARD
)


def norm_forward(x: mx.array, eps: float) -> mx.array:
    """Return the norm of vectors, (..., C), whose width is a multiple of `SIMD`."""
    return _of_vectors(NORM, [x], eps)


def norm_backward(x: mx.array, d_y: mx.array, d_stream: mx.array, eps: float) -> mx.array:
    """Return the gradient of ``x``, (..., C): that of its norm, plus ``d_stream``."""
    return _of_vectors(NORM_BACK, [x, d_y, d_stream], eps)


def _of_vectors(kernel: Kernel, arrays: list[mx.array], eps: float) -> mx.array:
    shape, dtype = arrays[0].shape, arrays[0].dtype
    C = shape[-1]
    N = arrays[0].size // C
    [result] = kernel(
        [*arrays, mx.array([N], mx.int32), mx.array([eps])],
        [(shape, dtype)],
        blocks=-(-N // _BLOCK),
        threads=_THREADS,
        T=dtype,
        C=C,
        WIDTH=widest(C // SIMD, 16 // dtype.size, 4, 2),
    )
    return result


# ==== Queries and keys ====

_READ_ANGLES = """
  using Some = Pack<T, PAIRS>;
  constexpr int GROUPS = (HEADS + EACH - 1) / EACH;
  const int unit = (block * THREADS + thread) / 32, lane = thread % 32;
  const int position = unit / GROUPS, first = unit % GROUPS * EACH;
  if (position >= counts[0] * counts[1]) return;
  const int sequence = position / counts[1];
  const int at = offsets[sequence % counts[2]] + position % counts[1];
  float c[PAIRS], s[PAIRS];
  for (int p = 0; p < PAIRS; p++) {
    const float theta = float(at) * frequencies[lane * PAIRS + p];
    c[p] = cosf(theta);
    s[p] = sinf(theta);
  }
  for (int head = first; head < first + EACH && head < HEADS; head++) {
    const DEVICE T* low = x + (size_t(position) * ALL_HEADS + head) * D + lane * PAIRS;
    const Some a = *reinterpret_cast<const DEVICE Some*>(low);
    const Some b = *reinterpret_cast<const DEVICE Some*>(low + D / 2);
    float squares = 0.0f;
    for (int p = 0; p < PAIRS; p++)
      squares += float(a.values[p]) * float(a.values[p]) + float(b.values[p]) * float(b.values[p]);
    const float scale = rsqrtf(simd_sum(squares) / D + eps[0]);
    const size_t out = (size_t(position) * HEADS + head) * D + lane * PAIRS;
    Some first_half, second_half;
"""

_ROTATE = """
    for (int p = 0; p < PAIRS; p++) {
      const float u = float(a.values[p]) * scale, v = float(b.values[p]) * scale;
      first_half.values[p] = T(u * c[p] + v * s[p]);
      second_half.values[p] = T(v * c[p] - u * s[p]);
    }
    *reinterpret_cast<DEVICE Some*>(y + out) = first_half;
    *reinterpret_cast<DEVICE Some*>(y + out + D / 2) = second_half;
  }
"""

_ROTATE_BACK = """
    const Some d_a = *reinterpret_cast<const DEVICE Some*>(d_y + out);
    const Some d_b = *reinterpret_cast<const DEVICE Some*>(d_y + out + D / 2);
    float d_u[PAIRS], d_v[PAIRS], product = 0.0f;
    for (int p = 0; p < PAIRS; p++) {
      d_u[p] = float(d_a.values[p]) * c[p] - float(d_b.values[p]) * s[p];
      d_v[p] = float(d_b.values[p]) * c[p] + float(d_a.values[p]) * s[p];
      product += float(a.values[p]) * d_u[p] + float(b.values[p]) * d_v[p];
    }
    const float along = simd_sum(product) / D * scale * scale;
    for (int p = 0; p < PAIRS; p++) {
      first_half.values[p] = T(scale * (d_u[p] - along * float(a.values[p])));
      second_half.values[p] = T(scale * (d_v[p] - along * float(b.values[p])));
    }
    *reinterpret_cast<DEVICE Some*>(d_x + out) = first_half;
    *reinterpret_cast<DEVICE Some*>(d_x + out + D / 2) = second_half;
  }
"""

_INPUTS = ["offsets", "frequencies", "counts", "eps"]
NORM_ROTATE = Kernel("mlxchat_norm_rotate", ["x", *_INPUTS], ["y"], _READ_ANGLES + _ROTATE)
NORM_ROTATE_BACK = Kernel(
    "mlxchat_norm_rotate_back", ["x", "d_y", *_INPUTS], ["d_x"], _READ_ANGLES + _ROTATE_BACK
)
HEAD_DIMS = (64, 128, 256)
_MANY = 1024  # positions that give a GPU enough to do


def norm_rotate_forward(
    x: mx.array, heads: int, offsets: mx.array, frequencies: mx.array, eps: float
) -> mx.array:
    """Return the normalised and rotated vectors of the first ``heads`` heads, (B, T, heads, D).

    Args:
        x: (B, T, all heads, D); D is one of `HEAD_DIMS`.
        heads: how many of them to compute.
        offsets: the first position, (1,) int32, or that of each sequence, (B,).
        frequencies: (D/2,) float32; the angle of a pair is its frequency times the position.
        eps: added to the mean square.
    """
    return _of_heads(NORM_ROTATE, [x], heads, offsets, frequencies, eps)


def norm_rotate_backward(
    x: mx.array, d_y: mx.array, offsets: mx.array, frequencies: mx.array, eps: float
) -> mx.array:
    """Return the gradient of ``x`` given that of the result, both (B, T, heads, D)."""
    return _of_heads(NORM_ROTATE_BACK, [x, d_y], x.shape[2], offsets, frequencies, eps)


def _of_heads(
    kernel: Kernel,
    arrays: list[mx.array],
    heads: int,
    offsets: mx.array,
    frequencies: mx.array,
    eps: float,
) -> mx.array:
    B, T, all_heads, D = arrays[0].shape
    dtype = arrays[0].dtype
    each = heads if B * T >= _MANY else 1  # the angles of a position serve all of its heads
    counts = mx.array([B, T, offsets.size], mx.int32)
    groups = B * T * -(-heads // each)
    [result] = kernel(
        [*arrays, offsets, frequencies, counts, mx.array([eps])],
        [((B, T, heads, D), dtype)],
        blocks=-(-groups // _BLOCK),
        threads=_THREADS,
        T=dtype,
        D=D,
        HEADS=heads,
        ALL_HEADS=all_heads,
        EACH=each,
        PAIRS=D // 2 // SIMD,
    )
    return result
