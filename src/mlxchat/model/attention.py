"""Attention from one position of each sequence to those in a cache, as in decoding."""

from collections.abc import Callable

from mlxchat.autotune import fastest, remembered
from mlxchat.model.kernels.attention import (
    ATTENTION,
    LARGEST_SCORE,
    QUERY_DIMS,
    SLOTS,
    masked_attention,
)
from mlxchat.model.norm import HALF_PRECISION, norm
from mlxchat.runtime import machine, mx

UNSEEN = -1e9  # added to a score, it makes the softmax weight zero
_SLOTS, _SEEN = 1024, 700  # of the buffers that are measured


_Attend = Callable[[mx.array, mx.array, mx.array, float, mx.array], mx.array]


def attend_from_one(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """Return the scaled dot-product attention of one position, (B, H, 1, D).

    Args:
        q: (B, H, 1, D), normalised.
        k, v: (B, n_kv_head, S, D), the keys normalised.
        scale: factor of the scores, before the softmax.
        mask: (B, 1, 1, S), or (1, 1, 1, S) for all sequences: 0 for the keys that are seen,
            `UNSEEN` for the others. None if all are seen.
    """
    _, H, _, D = q.shape
    _, key_heads, S, _ = k.shape
    if mask is not None and S % SLOTS == 0 and _kernel_is_faster(H, key_heads, D, scale, q.dtype):
        return masked_attention(q, k, v, scale, mask)
    return _of_mlx(q, k, v, scale, mask)


def _of_mlx(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _by_hand(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Compute the same without products of matrices, which CUDA rounds to fewer bits."""
    times = q.shape[1] // k.shape[1]
    k, v = mx.repeat(k, times, axis=1), mx.repeat(v, times, axis=1)  # (B, H, S, D)
    scores = scale * (q * k).sum(axis=-1, keepdims=True) + mask.swapaxes(2, 3)  # (B, H, S, 1)
    return (mx.softmax(scores, axis=2) * v).sum(axis=2, keepdims=True)  # (B, H, 1, D)


@remembered
def _kernel_is_faster(H: int, key_heads: int, D: int, scale: float, dtype: mx.Dtype) -> bool:
    # The norm of normalised queries and keys is the root of D, which bounds their product.
    if machine().backend == "cpu" or D not in QUERY_DIMS or scale * D > LARGEST_SCORE:
        return False

    def example(way: _Attend, dtype: mx.Dtype) -> Callable[[], list[mx.array]]:
        draw = mx.random.normal
        q = norm(draw((1, H, 1, D), key=mx.random.key(0)).astype(dtype))
        k = norm(draw((1, key_heads, _SLOTS, D), key=mx.random.key(1)).astype(dtype))
        v = draw((1, key_heads, _SLOTS, D), key=mx.random.key(2)).astype(dtype)
        mask = mx.where(mx.arange(_SLOTS) < _SEEN, 0.0, UNSEEN).astype(dtype)[None, None, None]
        mx.eval(q, k, v, mask)
        return lambda: [way(q, k, v, scale, mask)]

    chosen = fastest(
        f"attention of one position, {H} heads of {D}, {key_heads} of keys, {dtype}, "
        f"{ATTENTION.revision}",
        {"formula": example(_of_mlx, dtype), "kernel": example(masked_attention, dtype)},
        tolerance=HALF_PRECISION,
        exact={
            "formula": example(_by_hand, mx.float32),
            "kernel": example(masked_attention, mx.float32),
        },
    )
    return chosen == "kernel"
