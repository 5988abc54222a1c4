"""The attention of one position per sequence, over buffers of which a mask hides a part.

CUDA's own fused kernels take no mask, and MLX's plain operations are five kernels.
"""

from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

_THREADS = 512
SLOTS = 8  # that 32 threads in step take at once; a multiple of so many can be attended to
QUERY_DIMS = (32, 64, 128, 256)
LARGEST_SCORE = 40.0  # e**40 times a million is far below float32's largest number

# A block computes a head. The reading of the slots that are taken at once overlaps.
# Scores of normalised queries and keys are small: no maximum need be subtracted from them.
_BODY = """
  using Some = Pack<T, D / 32>;
  constexpr int EACH = D / 32, TEAMS = THREADS / 32;
  SHARED float sums[TEAMS];
  SHARED float parts[TEAMS * D];
  const int S = counts[0], team = thread_id / 32, lane = thread_id % 32;
  const int sequence = block_id / HEADS, head = block_id % HEADS;
  const size_t own = size_t(sequence) * KEY_HEADS + head / (HEADS / KEY_HEADS);
  const DEVICE T* k = keys + own * S * D + lane * EACH;
  const DEVICE T* v = values + own * S * D + lane * EACH;
  const DEVICE T* added = mask + (counts[1] > 1 ? size_t(sequence) * S : 0);

  const size_t place = size_t(block_id) * D + lane * EACH;
  const Some q = *reinterpret_cast<const DEVICE Some*>(queries + place);
  float query[EACH], part[EACH], sum = 0.0f;
  for (int i = 0; i < EACH; i++) {
    query[i] = float(q.values[i]) * scale[0] * 1.44269504f;  // log2(e)
    part[i] = 0.0f;
  }
  for (int start = team * SLOTS; start < S; start += TEAMS * SLOTS) {
    bool seen[SLOTS], any = false;
    for (int n = 0; n < SLOTS; n++) {
      seen[n] = float(added[start + n]) == 0.0f;
      any = any || seen[n];
    }
    if (!any) continue;
    Some ks[SLOTS], vs[SLOTS];
    for (int n = 0; n < SLOTS; n++) {
      ks[n] = *reinterpret_cast<const DEVICE Some*>(k + size_t(start + n) * D);
      vs[n] = *reinterpret_cast<const DEVICE Some*>(v + size_t(start + n) * D);
    }
    for (int n = 0; n < SLOTS; n++) {
      float score = 0.0f;
      for (int i = 0; i < EACH; i++) score += query[i] * float(ks[n].values[i]);
      score = simd_sum(score);
      const float weight = seen[n] ? power_of_two(score) : 0.0f;
      sum += weight;
      for (int i = 0; i < EACH; i++) part[i] += weight * float(vs[n].values[i]);
    }
  }
  if (lane == 0) sums[team] = sum;
  for (int i = 0; i < EACH; i++) parts[team * D + lane * EACH + i] = part[i];
  BARRIER;
  if (thread_id < D) {
    float total = 0.0f, whole = 0.0f;
    for (int n = 0; n < TEAMS; n++) {
      total += sums[n];
      whole += parts[n * D + thread_id];
    }
    result[size_t(block_id) * D + thread_id] = T(whole / total);
  }
"""

ATTENTION = Kernel(
    "mlxchat_attention",
    ["queries", "keys", "values", "mask", "counts", "scale"],
    ["result"],
    _BODY,
)


def masked_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array
) -> mx.array:
    """Attend from one position, (B, H, 1, D), to the slots that a mask leaves; returns the same.

    Args:
        q: (B, H, 1, D); D is one of `QUERY_DIMS`.
        k, v: (B, n_kv_head, S, D); S is a multiple of `SLOTS`.
        scale: factor of the scores, of which none may exceed `LARGEST_SCORE`.
        mask: (B, 1, 1, S), or (1, 1, 1, S) for all: 0 for what is seen.
    """
    B, H, _, D = q.shape
    [result] = ATTENTION(
        [q, k, v, mask, mx.array([k.shape[2], mask.shape[0]], mx.int32), mx.array([scale])],
        [(q.shape, q.dtype)],
        blocks=B * H,
        threads=_THREADS,
        T=q.dtype,
        D=D,
        HEADS=H,
        KEY_HEADS=k.shape[1],
        SLOTS=SLOTS,
    )
    return result
