"""Causal attention, to all that came before or to a window of it."""

from mlxchat.model.arithmetic import QUERIES
from mlxchat.runtime import machine, mx

UNSEEN = -1e9  # added to a score, makes its weight zero


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    window: int,
    hidden: mx.array | None = None,
) -> mx.array:
    """What the queries of the last T of S positions make of the values, (B, H, T, D).

    On CPUs, where the scores are not fused, queries are taken in blocks, each with the keys that
    it can see: half of the scores at most are neither computed nor held.

    Args:
        q: (B, H, T, D).
        k, v: (B, n_kv_head, S, D).
        scale: of the scores.
        window: positions that each can see before itself.
        hidden: what is added to the scores of a single query, (B, 1, 1, S); it sees all S.
    """
    T, S = q.shape[2], k.shape[2]
    if T == 1:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=hidden)
    block = QUERIES if machine().backend == "cpu" else T
    seen = []
    for first in range(0, T, block):
        last = min(first + block, T)
        begin, end = max(0, S - T + first - window), S - T + last
        seen.append(
            mx.fast.scaled_dot_product_attention(
                q[:, :, first:last],
                k[:, :, begin:end],
                v[:, :, begin:end],
                scale=scale,
                mask=_mask(last - first, end - begin, window, q.dtype),
            )
        )
    return mx.concatenate(seen, axis=2)


def _mask(T: int, S: int, window: int, dtype: mx.Dtype) -> str | mx.array:
    """Which of S positions the last T can see; an array is added to the scores, since there is no
    fused kernel for booleans.
    """
    if window + 1 >= S:
        return "causal"
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)
    seen = (key <= query) & (key >= query - window)  # (T, S)
    return mx.where(seen, mx.array(0, dtype), mx.array(UNSEEN, dtype))
