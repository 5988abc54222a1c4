"""The norm and the rotation of queries and keys, beside values, forward and backward.

32 threads in step compute a head's vector at a position; the angles of a position serve all heads.
"""

from mlxchat.model.kernels.source import SIMD, Kernel
from mlxchat.runtime import mx

HEAD_DIMS = (64, 128, 256)
_THREADS = 256
_BLOCK = _THREADS // SIMD  # vectors that a block computes at a time
_MANY = 1024  # positions that give a GPU enough to do

_BEGIN = """
  using Some = Pack<T, PAIRS>;
  constexpr int GROUPS = (HEADS + EACH - 1) / EACH;
  const int unit = (block_id * THREADS + thread_id) / 32, lane = thread_id % 32;
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
    const size_t own = (size_t(position) * ALL + head) * D + lane * PAIRS;
    const size_t query = (size_t(position) * Q + head) * D + lane * PAIRS;
    const size_t key = (size_t(position) * K + head - Q) * D + lane * PAIRS;
"""

_NORM = """
    const Some a = *reinterpret_cast<const DEVICE Some*>(qkv + own);
    const Some b = *reinterpret_cast<const DEVICE Some*>(qkv + own + D / 2);
    float squares = 0.0f;
    for (int p = 0; p < PAIRS; p++)
      squares += float(a.values[p]) * float(a.values[p]) + float(b.values[p]) * float(b.values[p]);
    const float scale = rsqrtf(simd_sum(squares) / D + eps[0]);
    Some first_half, second_half;
"""

_FORWARD = """
    for (int p = 0; p < PAIRS; p++) {
      const float u = float(a.values[p]) * scale, v = float(b.values[p]) * scale;
      first_half.values[p] = T(u * c[p] + v * s[p]);
      second_half.values[p] = T(v * c[p] - u * s[p]);
    }
    DEVICE T* out = head < Q ? q + query : k + key;
    *reinterpret_cast<DEVICE Some*>(out) = first_half;
    *reinterpret_cast<DEVICE Some*>(out + D / 2) = second_half;
  }
"""

_BACKWARD_OF_VALUES = """
    if (head >= Q + K) {
      const DEVICE T* of_value = d_v + key - size_t(K) * D;
      *reinterpret_cast<DEVICE Some*>(d_qkv + own) =
          *reinterpret_cast<const DEVICE Some*>(of_value);
      *reinterpret_cast<DEVICE Some*>(d_qkv + own + D / 2) =
          *reinterpret_cast<const DEVICE Some*>(of_value + D / 2);
      continue;
    }
"""

_BACKWARD = """
    const DEVICE T* given = head < Q ? d_q + query : d_k + key;
    const Some d_a = *reinterpret_cast<const DEVICE Some*>(given);
    const Some d_b = *reinterpret_cast<const DEVICE Some*>(given + D / 2);
    float g_u[PAIRS], g_v[PAIRS], product = 0.0f;
    for (int p = 0; p < PAIRS; p++) {
      g_u[p] = float(d_a.values[p]) * c[p] - float(d_b.values[p]) * s[p];
      g_v[p] = float(d_b.values[p]) * c[p] + float(d_a.values[p]) * s[p];
      product += float(a.values[p]) * g_u[p] + float(b.values[p]) * g_v[p];
    }
    const float along = simd_sum(product) / D * scale * scale;
    for (int p = 0; p < PAIRS; p++) {
      first_half.values[p] = T(scale * (g_u[p] - along * float(a.values[p])));
      second_half.values[p] = T(scale * (g_v[p] - along * float(b.values[p])));
    }
    *reinterpret_cast<DEVICE Some*>(d_qkv + own) = first_half;
    *reinterpret_cast<DEVICE Some*>(d_qkv + own + D / 2) = second_half;
  }
"""

_NUMBERS = ["offsets", "frequencies", "counts", "eps"]
SPLIT = Kernel("mlxchat_split", ["qkv", *_NUMBERS], ["q", "k"], _BEGIN + _NORM + _FORWARD)
SPLIT_BACK = Kernel(
    "mlxchat_split_back",
    ["qkv", "d_q", "d_k", "d_v", *_NUMBERS],
    ["d_qkv"],
    _BEGIN + _BACKWARD_OF_VALUES + _NORM + _BACKWARD,
)


def split_forward(
    qkv: mx.array, heads: tuple[int, int], offsets: mx.array, frequencies: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """Return normalised and rotated queries, (B, T, H, D), and keys, (B, T, K, D).

    Args:
        qkv: (B, T, H + 2 K, D); D is one of `HEAD_DIMS`.
        heads: H, of the queries, and K, of the keys.
        offsets: the first position, (1,) int32, or that of each sequence, (B,).
        frequencies: (D/2,) float32; the angle of a pair is its frequency times the position.
        eps: added to the mean square.
    """
    B, T, _, D = qkv.shape
    q, k = _of_heads(
        SPLIT,
        [qkv],
        [(B, T, count, D) for count in heads],
        heads,
        sum(heads),
        [offsets, frequencies],
        eps,
    )
    return q, k


def split_backward(
    qkv: mx.array,
    cotangents: list[mx.array],
    offsets: mx.array,
    frequencies: mx.array,
    eps: float,
) -> mx.array:
    """Return the gradient of ``qkv``, (B, T, H + 2 K, D).

    Args:
        qkv, offsets, frequencies, eps: as for `split_forward`.
        cotangents: the gradients of the queries, keys and values, (B, T, heads, D) each.
    """
    H, K = (d.shape[2] for d in cotangents[:2])
    [d_qkv] = _of_heads(
        SPLIT_BACK,
        [qkv, *cotangents],
        [qkv.shape],
        (H, K),
        H + 2 * K,
        [offsets, frequencies],
        eps,
    )
    return d_qkv


def _of_heads(
    kernel: Kernel,
    arrays: list[mx.array],
    results: list[tuple[int, ...]],
    heads: tuple[int, int],
    computed: int,
    numbers: list[mx.array],
    eps: float,
) -> list[mx.array]:
    B, T, every, D = arrays[0].shape
    dtype = arrays[0].dtype
    each = computed if B * T >= _MANY else 1
    groups = B * T * -(-computed // each)
    counts = mx.array([B, T, numbers[0].size], mx.int32)
    return kernel(
        [*arrays, *numbers, counts, mx.array([eps])],
        [(shape, dtype) for shape in results],
        blocks=-(-groups // _BLOCK),
        threads=_THREADS,
        T=dtype,
        D=D,
        Q=heads[0],
        K=heads[1],
        ALL=every,
        HEADS=computed,
        EACH=each,
        PAIRS=D // 2 // SIMD,
    )
