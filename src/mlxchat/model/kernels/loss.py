"""The cross entropy of softly capped logits, with its gradient, in one kernel.

The plain formula passes over the float32 logits some ten times. The kernel reads a row twice and
writes its gradient once: 6 bytes for a logit in half precision, of which the second reading comes
from the cache.
"""

from mlxchat.model.kernels.source import Kernel, widest
from mlxchat.runtime import mx

THREADS = 512

# A block computes a row. With u = z / bound and r = 1 / (1 + exp(2 u)), tanh(u) is 1 - 2 r, and its
# derivative 4 r (1 - r). The bound keeps exp(bound * tanh(u)) from overflowing.
_BODY = """
  using Some = Pack<T, WIDTH>;
  SHARED float sums[32];
  const float bound = bounds[0], share = weights[block_id];
  const float twice = 2.88539008f / bound;  // 2 log2(e)
  const float height = 1.44269504f * bound;
  const int target = targets[block_id];
  const DEVICE T* row = logits + size_t(block_id) * V;

  float sum = 0.0f;
  for (int i = thread_id * WIDTH; i < V; i += THREADS * WIDTH) {
    const Some some = *reinterpret_cast<const DEVICE Some*>(row + i);
    for (int j = 0; j < WIDTH; j++) {
      const float r = inverse(1.0f + power_of_two(twice * float(some.values[j])));
      sum += power_of_two(height - 2.0f * height * r);
    }
  }
  sum = simd_sum(sum);
  if (thread_id % 32 == 0) sums[thread_id / 32] = sum;
  BARRIER;
  sum = 0.0f;
  for (int i = 0; i < THREADS / 32; i++) sum += sums[i];

  const float scale = target < 0 ? 0.0f : share;
  if (thread_id == 0) {
    float loss = 0.0f;
    if (target >= 0) {
      const float r = inverse(1.0f + power_of_two(twice * float(row[target])));
      loss = logf(sum) - (bound - 2.0f * bound * r);
    }
    losses[block_id] = loss;
  }
  const float normaliser = 1.0f / sum;
  DEVICE T* d_row = d_logits + size_t(block_id) * V;
  for (int i = thread_id * WIDTH; i < V; i += THREADS * WIDTH) {
    const Some some = *reinterpret_cast<const DEVICE Some*>(row + i);
    Some d_some;
    for (int j = 0; j < WIDTH; j++) {
      const float r = inverse(1.0f + power_of_two(twice * float(some.values[j])));
      const float softmax = power_of_two(height - 2.0f * height * r) * normaliser;
      const float d_capped = softmax - (i + j == target ? 1.0f : 0.0f);
      d_some.values[j] = T(d_capped * scale * 4.0f * r * (1.0f - r));
    }
    *reinterpret_cast<DEVICE Some*>(d_row + i) = d_some;
  }
"""

CROSS_ENTROPY = Kernel(
    "mlxchat_cross_entropy",
    ["logits", "targets", "weights", "bounds"],
    ["losses", "d_logits"],
    _BODY,
)


def cross_entropy_kernel(
    logits: mx.array, targets: mx.array, softcap: float, weight: mx.array
) -> tuple[mx.array, mx.array]:
    """Return what `mlxchat.model.loss.cross_entropy_formula` returns."""
    R, V = logits.shape
    weights = mx.contiguous(mx.broadcast_to(weight.astype(mx.float32), (R,)))
    losses, d_logits = CROSS_ENTROPY(
        [logits, targets.astype(mx.int32), weights, mx.array([softcap])],
        [((R,), mx.float32), ((R, V), logits.dtype)],
        blocks=R,
        threads=THREADS,
        T=logits.dtype,
        V=V,
        WIDTH=widest(V, 16 // logits.dtype.size, 4, 2),
    )
    return losses, d_logits
