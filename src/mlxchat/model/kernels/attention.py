"""The attention of one position per sequence, over buffers that do not hold that position yet.

CUDA's own fused kernels take no mask, and MLX's plain operations are five kernels. The whole array
of several layers is passed, and the number of the layer: a view of it would be an operation more.
"""

from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

_THREADS = 512
SLOTS = 8  # that 32 threads in step take at once; a multiple of so many can be attended to
QUERY_DIMS = (32, 64, 128, 256)

# A block computes a head. The reading of the slots that are taken at once overlaps.
# Scores of normalised queries and keys are small: no maximum need be subtracted from them.
_BODY = """
  using Some = Pack<T, D / 32>;
  constexpr int EACH = D / 32, TEAMS = THREADS / 32;
  SHARED float sums[TEAMS];
  SHARED float parts[TEAMS * D];
  const int S = counts[0], layer = counts[2], team = thread_id / 32, lane = thread_id % 32;
  const int sequence = block_id / HEADS, head = block_id % HEADS;
  const size_t own = size_t(sequence) * KEY_HEADS + head / (HEADS / KEY_HEADS);
  const size_t of_layer = size_t(KEY_HEADS) * counts[3] * S * D;
  const DEVICE T* k = buffers + 2 * layer * of_layer + own * S * D + lane * EACH;
  const DEVICE T* v = k + of_layer;
  const int from = first[counts[1] > 1 ? sequence : 0], until = slot[counts[4] > 1 ? sequence : 0];

  const size_t place = size_t(block_id) * D + lane * EACH;
  const Some q = *reinterpret_cast<const DEVICE Some*>(queries + place);
  float query[EACH], part[EACH], sum = 0.0f;
  for (int i = 0; i < EACH; i++) {
    query[i] = float(q.values[i]) * scale[0] * 1.44269504f;  // log2(e)
    part[i] = 0.0f;
  }
  if (team == 0) {
    const size_t latest = own * D + lane * EACH;
    const Some new_k = *reinterpret_cast<const DEVICE Some*>(new_keys + latest);
    const Some new_v = *reinterpret_cast<const DEVICE Some*>(new_values + latest);
    float score = 0.0f;
    for (int i = 0; i < EACH; i++) score += query[i] * float(new_k.values[i]);
    sum = power_of_two(simd_sum(score));
    for (int i = 0; i < EACH; i++) part[i] = sum * float(new_v.values[i]);
  }
  for (int start = from / SLOTS * SLOTS + team * SLOTS; start < until; start += TEAMS * SLOTS) {
    Some ks[SLOTS], vs[SLOTS];
    for (int n = 0; n < SLOTS; n++) {
      ks[n] = *reinterpret_cast<const DEVICE Some*>(k + size_t(start + n) * D);
      vs[n] = *reinterpret_cast<const DEVICE Some*>(v + size_t(start + n) * D);
    }
    for (int n = 0; n < SLOTS; n++) {
      float score = 0.0f;
      for (int i = 0; i < EACH; i++) score += query[i] * float(ks[n].values[i]);
      score = simd_sum(score);
      const float weight = start + n >= from && start + n < until ? power_of_two(score) : 0.0f;
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
    ["queries", "new_keys", "new_values", "buffers", "first", "slot", "counts", "scale"],
    ["result"],
    _BODY,
)


def attend_to_slots(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    buffers: mx.array,
    layer: int,
    first: mx.array,
    slot: mx.array,
    scale: float,
) -> mx.array:
    """Attend from one position, (B, H, 1, D), to itself and to slots of a layer's buffers.

    Args:
        q: (B, H, 1, D); D is one of `QUERY_DIMS`.
        k, v: the position's own key and value, (B, n_kv_head, 1, D).
        buffers: keys and values of several layers, (layers, 2, B, n_kv_head, S, D); S is a multiple
            of `SLOTS`.
        layer: which of these layers is read.
        first: the first slot that each sequence sees, B numbers in int32, or one for all.
        slot: the one after the last that each sequence sees, B numbers in int32, or one for all.
        scale: factor of the scores, which must be bounded (`scores_are_bounded`).

    Returns:
        (B, H, 1, D).
    """
    B, H, _, D = q.shape
    counts = mx.array([buffers.shape[4], first.size, layer, B, slot.size], mx.int32)
    [result] = ATTENTION(
        [q, k, v, buffers, first, slot, counts, mx.array([scale])],
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
