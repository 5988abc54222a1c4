"""RMS norms of the residual stream, without weights, forward and backward.

32 threads in step compute a vector, so that its sum of squares needs no memory of the block.
"""

from mlxchat.model.kernels.source import SIMD, Kernel, widest
from mlxchat.runtime import mx

_THREADS = 256
_BLOCK = _THREADS // SIMD  # vectors that a block computes at a time

_BEGIN = """
  using Some = Pack<T, WIDTH>;
  constexpr int EACH = C / (32 * WIDTH);
  const unsigned number = (block_id * THREADS + thread_id) / 32, lane = thread_id % 32;
  if (number >= unsigned(count[0])) return;
  const size_t start = size_t(number) * C + lane * WIDTH;
"""

# ==== The norm of the stream ====

_READ_VECTOR = """
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
NORM = Kernel("mlxchat_norm", ["x", *_COUNT_EPS], ["y"], _BEGIN + _READ_VECTOR + _FORWARD)
NORM_BACK = Kernel(
    "mlxchat_norm_back",
    ["x", "d_y", "d_stream", *_COUNT_EPS],
    ["d_x"],
    _BEGIN + _READ_VECTOR + _BACKWARD,
)


def norm_forward(x: mx.array, eps: float) -> mx.array:
    """Return the norm of vectors, (..., C), whose width is a multiple of `SIMD`."""
    [y] = _of_vectors(NORM, [x], eps)
    return y


def norm_backward(x: mx.array, d_y: mx.array, d_stream: mx.array, eps: float) -> mx.array:
    """Return the gradient of ``x``, (..., C): that of its norm, plus ``d_stream``."""
    [d_x] = _of_vectors(NORM_BACK, [x, d_y, d_stream], eps)
    return d_x


# ==== The stream mixed with the embedding, and the norm of the sum ====

_READ_MIXTURE = """
  const float a = of_x[0], b = of_x0[0];
  Some xs[EACH], firsts[EACH];
  float squares = 0.0f;
  for (int i = 0; i < EACH; i++) {
    xs[i] = *reinterpret_cast<const DEVICE Some*>(x + start + i * 32 * WIDTH);
    firsts[i] = *reinterpret_cast<const DEVICE Some*>(x0 + start + i * 32 * WIDTH);
    for (int j = 0; j < WIDTH; j++) {
      const float m = float(T(a * float(xs[i].values[j]) + b * float(firsts[i].values[j])));
      squares += m * m;
    }
  }
  const float scale = rsqrtf(simd_sum(squares) / C + eps[0]);
"""

_MIX_FORWARD = """
  for (int i = 0; i < EACH; i++) {
    Some sum, normed;
    for (int j = 0; j < WIDTH; j++) {
      sum.values[j] = T(a * float(xs[i].values[j]) + b * float(firsts[i].values[j]));
      normed.values[j] = T(float(sum.values[j]) * scale);
    }
    *reinterpret_cast<DEVICE Some*>(mixed + start + i * 32 * WIDTH) = sum;
    *reinterpret_cast<DEVICE Some*>(y + start + i * 32 * WIDTH) = normed;
  }
"""

_MIX_BACKWARD = """
  Some ds[EACH];
  float product = 0.0f;
  for (int i = 0; i < EACH; i++) {
    ds[i] = *reinterpret_cast<const DEVICE Some*>(d_y + start + i * 32 * WIDTH);
    for (int j = 0; j < WIDTH; j++) {
      const float m = float(T(a * float(xs[i].values[j]) + b * float(firsts[i].values[j])));
      product += m * float(ds[i].values[j]);
    }
  }
  const float along = simd_sum(product) / C * scale * scale;
  float by_x = 0.0f, by_x0 = 0.0f;
  for (int i = 0; i < EACH; i++) {
    const size_t at = start + i * 32 * WIDTH;
    Some beside = *reinterpret_cast<const DEVICE Some*>(d_mixed + at);
    Some later = *reinterpret_cast<const DEVICE Some*>(d_first + at);
    for (int j = 0; j < WIDTH; j++) {
      const float u = float(xs[i].values[j]), v = float(firsts[i].values[j]);
      const float m = float(T(a * u + b * v));
      const float d = float(beside.values[j]) + scale * (float(ds[i].values[j]) - along * m);
      by_x += d * u;
      by_x0 += d * v;
      beside.values[j] = T(a * d);
      later.values[j] = T(float(later.values[j]) + b * d);
    }
    *reinterpret_cast<DEVICE Some*>(d_x + at) = beside;
    *reinterpret_cast<DEVICE Some*>(d_x0 + at) = later;
  }
  by_x = simd_sum(by_x);
  by_x0 = simd_sum(by_x0);
  if (lane == 0) {
    products[2 * number] = by_x;
    products[2 * number + 1] = by_x0;
  }
"""

_WEIGHTS = ["of_x", "of_x0"]
MIX = Kernel(
    "mlxchat_mix",
    ["x", "x0", *_WEIGHTS, *_COUNT_EPS],
    ["mixed", "y"],
    _BEGIN + _READ_MIXTURE + _MIX_FORWARD,
)
MIX_BACK = Kernel(
    "mlxchat_mix_back",
    ["x", "x0", "d_y", "d_mixed", "d_first", *_WEIGHTS, *_COUNT_EPS],
    ["d_x", "d_x0", "products"],
    _BEGIN + _READ_MIXTURE + _MIX_BACKWARD,
)


def mix_forward(
    x: mx.array, x0: mx.array, a: mx.array, b: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """Return the mixture of two streams and its norm, (..., C) each.

    Args:
        x, x0: (..., C), whose width is a multiple of `SIMD`.
        a, b: their weights, (1,) in float32.
        eps: added to the mean square.
    """
    mixed, y = _of_vectors(MIX, [x, x0], eps, a, b, results=2)
    return mixed, y


def mix_backward(
    x: mx.array, x0: mx.array, cotangents: list[mx.array], a: mx.array, b: mx.array, eps: float
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Return the gradients of both streams, (..., C), and of their weights, (1,).

    Args:
        x, x0, a, b, eps: as for `mix_forward`.
        cotangents: the gradients of the norm, of the mixture, and of ``x0`` from elsewhere.
    """
    d_x, d_x0, products = _of_vectors(
        MIX_BACK, [x, x0, *cotangents], eps, a, b, results=2, products=2
    )
    d_a, d_b = mx.split(products.sum(axis=0), 2)
    return d_x, d_x0, d_a, d_b


def _of_vectors(
    kernel: Kernel,
    arrays: list[mx.array],
    eps: float,
    *weights: mx.array,
    results: int = 1,
    products: int = 0,
) -> list[mx.array]:
    """Launch a kernel that computes vectors and, with each, a number of its products."""
    shape, dtype = arrays[0].shape, arrays[0].dtype
    C = shape[-1]
    N = arrays[0].size // C
    outputs = [(shape, dtype)] * results
    if products:
        outputs.append(((N, products), mx.float32))
    return kernel(
        [*arrays, *weights, mx.array([N], mx.int32), mx.array([eps])],
        outputs,
        blocks=-(-N // _BLOCK),
        threads=_THREADS,
        T=dtype,
        C=C,
        WIDTH=widest(C // SIMD, 16 // dtype.size, 4, 2),
    )
