"""Causal attention for training on CPUs, where MLX has no fused kernel and a slow softmax.

Queries and keys are normalised, so their scores are bounded: softmax need not subtract a maximum
first, and its exponentials can be the polynomial of `mlxchat.model.cpu`. It pays inside
`mx.compile`, where training and evaluation compute.
"""

from collections.abc import Callable
from typing import cast

from mlxchat.model.cpu import exp
from mlxchat.model.size import query_block
from mlxchat.runtime import machine, mx


def bounded_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int) -> mx.array:
    """Return `mlxchat.model.block.causal_attention` of as many queries as keys, (B, H, T, D).

    Like there, the queries are taken in blocks, each with the keys that it can see. The
    exponentials of the scores are held for the gradient, as softmax weights would be.

    Args:
        q: (B, H, T, D) in float32.
        k, v: (B, n_kv_head, T, D) in float32.
        scale: factor of the scores, which are bounded with it (`scores_are_bounded`).
        window: how many positions before its own each query can see.
    """
    H, T = q.shape[1:3]
    n_kv_head = k.shape[1]
    q = mx.unflatten(scale * q, 1, (n_kv_head, H // n_kv_head))  # (B, n_kv_head, groups, T, D)
    block = query_block(machine().backend, T, T, window)
    outputs = []
    for start in range(0, T, block):
        stop, first_key = min(start + block, T), max(0, start - window)
        query, key = mx.arange(start, stop)[:, None], mx.arange(first_key, stop)
        seen = (key <= query) & (key >= query - window)  # (queries, keys)
        keys, values = (x[:, :, None, first_key:stop] for x in (k, v))
        outputs.append(_attend(q[..., start:stop, :], keys, values, seen))
    return mx.flatten(mx.concatenate(outputs, axis=-2), 1, 2)


def _attend(q: mx.array, k: mx.array, v: mx.array, seen: mx.array) -> mx.array:
    """Return the attention of a block of queries, (B, n_kv_head, groups, queries, D).

    Args:
        q: (B, n_kv_head, groups, queries, D), multiplied by the scale.
        k, v: (B, n_kv_head, 1, keys, D).
        seen: (queries, keys), whether the query sees the key.
    """

    @mx.custom_function
    def output_and_weights(
        q: mx.array, k: mx.array, v: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        weights = mx.where(seen, exp(q @ k.swapaxes(-1, -2)), 0.0)  # (..., queries, keys)
        share = 1 / weights.sum(axis=-1, keepdims=True)  # (..., queries, 1)
        return (weights @ v) * share, weights, share

    @output_and_weights.vjp
    def gradients(
        arrays: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        (q, k, v), (y, weights, share) = arrays, outputs
        d_y = cotangents[0] * share  # (..., queries, D)
        # The gradient of a score is its weight times (d_y . v - d_y . y). A column of ones beside
        # the values makes that one product, which leaves a plain multiplication to be vectorised.
        d_y_and_mean = mx.concatenate([d_y, -(d_y * y).sum(axis=-1, keepdims=True)], axis=-1)
        v_and_one = mx.concatenate([v, mx.ones_like(v[..., :1])], axis=-1)
        d_scores = weights * (d_y_and_mean @ v_and_one.swapaxes(-1, -2))  # (..., queries, keys)
        d_k = (d_scores.swapaxes(-1, -2) @ q).sum(axis=2, keepdims=True)  # (..., 1, keys, D)
        d_v = (weights.swapaxes(-1, -2) @ d_y).sum(axis=2, keepdims=True)
        return d_scores @ k, d_k, d_v

    return cast(Callable[..., list[mx.array]], output_and_weights)(q, k, v)[0]
