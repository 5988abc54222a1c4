"""Attention from one position of each sequence to those in a cache, as in decoding."""

from collections.abc import Callable
from typing import NamedTuple

from mlxchat.autotune import fastest, remembered
from mlxchat.model.kernels.attention import (
    ATTENTION,
    QUERY_DIMS,
    SLOTS,
    attend_to_slots,
)
from mlxchat.model.norm import HALF_PRECISION, norm
from mlxchat.runtime import machine, mx

UNSEEN = -1e9  # added to a score, it makes the softmax weight zero
_SLOTS, _SEEN = 1024, 700  # of the buffers that are measured

# With this bound the sums over 2**20 keys are below 3e23, and above 4e-18 over a single one: far
# from the ends of float32 even when they are multiplied by values and gradients.
LARGEST_BOUND = 40.0


def scores_are_bounded(scale: float, head_dim: int) -> bool:
    """Return whether scores of normalised queries and keys are within `LARGEST_BOUND`.

    A vector of D numbers has a norm of at most D^(1/2) after the RMS norm, and a rotation keeps it.
    So no product of a query and a key is larger than D, and no score larger than scale * D.

    >>> scores_are_bounded(1.2**2 / 128**0.5, 128)  # modern: at most 16.3
    True
    """
    return scale * head_dim <= LARGEST_BOUND


class Span(NamedTuple):
    """The slots of a layer's buffers that a new position sees, and the one it takes, in int32.

    Attributes:
        slots: the numbers of the slots, one after another, (S,).
        first: the first slot that each sequence sees, (B, 1, 1, 1), or (1, 1, 1, 1) for all.
        taken: the slot of the new position, of the same shapes: it sees those before it, and
            itself.
    """

    slots: mx.array
    first: mx.array
    taken: mx.array


def attend_to_buffers(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    buffers: mx.array,
    layer: int,
    span: Span,
    scale: float,
) -> mx.array:
    """Return the attention of one position to itself and to what buffers hold, (B, H, 1, D).

    Args:
        q: (B, H, 1, D), normalised.
        k, v: the position's own key, normalised, and value, (B, n_kv_head, 1, D); the buffers need
            not hold them.
        buffers: keys and values of several layers, (layers, 2, B, n_kv_head, S, D).
        layer: which of these layers it is.
        span: which slots are seen.
        scale: factor of the scores, before the softmax.
    """
    _, H, _, D = q.shape
    key_heads, S = buffers.shape[3:5]
    if S % SLOTS == 0 and _kernel_is_faster(H, key_heads, D, scale, q.dtype):
        return _with_kernel(q, k, v, buffers, layer, span, scale)
    if machine().backend == "cpu":
        return _without_copies(q, k, v, buffers, layer, span, scale)
    return _of_mlx(q, k, v, buffers, layer, span, scale)


_Attend = Callable[
    [mx.array, mx.array, mx.array, mx.array, int, Span, float],
    mx.array,
]


def _of_mlx(
    q: mx.array, k: mx.array, v: mx.array, buffers: mx.array, layer: int, span: Span, scale: float
) -> mx.array:
    k, v = _seen_and_own(k, v, buffers[layer], span)
    mask = _mask(span, q.dtype)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _without_copies(
    q: mx.array, k: mx.array, v: mx.array, buffers: mx.array, layer: int, span: Span, scale: float
) -> mx.array:
    """Compute the same on CPUs: the new position beside what the buffers hold, not in it.

    Keys times a query are faster there than a query times keys, whose copies OpenBLAS makes.
    """
    B, H, _, D = q.shape
    q = (scale * q).reshape(B, k.shape[1], -1, D)  # (B, n_kv_head, groups, D)
    keys, values = buffers[layer]  # (B, n_kv_head, S, D)
    mask = _mask(span, q.dtype, own=False).swapaxes(2, 3)  # (B or 1, 1, S, 1)
    scores = keys @ q.swapaxes(2, 3) + mask  # (B, n_kv_head, S, groups)
    own = (k * q).sum(axis=-1, keepdims=True)  # (B, n_kv_head, groups, 1)
    weights = mx.softmax(mx.concatenate([scores.swapaxes(2, 3), own], axis=-1), axis=-1)
    y = weights[..., :-1] @ values + weights[..., -1:] * v  # (B, n_kv_head, groups, D)
    return y.reshape(B, H, 1, D)


def _by_hand(
    q: mx.array, k: mx.array, v: mx.array, buffers: mx.array, layer: int, span: Span, scale: float
) -> mx.array:
    """Compute the same without products of matrices, which CUDA rounds to fewer bits."""
    times = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(x, times, axis=1) for x in _seen_and_own(k, v, buffers[layer], span))
    mask = _mask(span, q.dtype).swapaxes(2, 3)  # (B, 1, S, 1)
    scores = scale * (q * k).sum(axis=-1, keepdims=True) + mask  # (B, H, S, 1)
    return (mx.softmax(scores, axis=2) * v).sum(axis=2, keepdims=True)  # (B, H, 1, D)


def _seen_and_own(
    k: mx.array, v: mx.array, buffers: mx.array, span: Span
) -> tuple[mx.array, mx.array]:
    """Return copies of a layer's keys and values, (B, n_kv_head, S, D), with the new ones."""
    keys = mx.put_along_axis(buffers[0], span.taken, k, axis=2)
    values = mx.put_along_axis(buffers[1], span.taken, v, axis=2)
    return keys, values


def _mask(span: Span, dtype: mx.Dtype, own: bool = True) -> mx.array:
    """Return what to add to the scores, (B or 1, 1, 1, S); ``own``: the position sees its slot."""
    last = span.taken if own else span.taken - 1
    seen = (span.slots >= span.first) & (span.slots <= last)
    return mx.where(seen, mx.array(0, dtype), mx.array(UNSEEN, dtype))


def _with_kernel(
    q: mx.array, k: mx.array, v: mx.array, buffers: mx.array, layer: int, span: Span, scale: float
) -> mx.array:
    return attend_to_slots(q, k, v, buffers, layer, span.first, span.taken, scale)


@remembered
def _kernel_is_faster(H: int, key_heads: int, D: int, scale: float, dtype: mx.Dtype) -> bool:
    if machine().backend == "cpu" or D not in QUERY_DIMS or not scores_are_bounded(scale, D):
        return False

    def example(way: _Attend, dtype: mx.Dtype) -> Callable[[], list[mx.array]]:
        draw = mx.random.normal
        q = norm(draw((1, H, 1, D), key=mx.random.key(0)).astype(dtype))
        k, v = draw((2, 1, key_heads, 1, D), key=mx.random.key(1)).astype(dtype)
        held = draw((2, 1, key_heads, _SLOTS, D), key=mx.random.key(2)).astype(dtype)
        k, buffers = norm(k), mx.stack([norm(held[0]), held[1]])[None]
        first, taken = (mx.full((1, 1, 1, 1), n, mx.int32) for n in (0, _SEEN))
        span = Span(mx.arange(_SLOTS), first, taken)
        mx.eval(q, k, v, buffers, span)
        return lambda: [way(q, k, v, buffers, 0, span, scale)]

    chosen = fastest(
        f"attention of one position, {H} heads of {D}, {key_heads} of keys, {dtype}",
        {"formula": example(_of_mlx, dtype), "kernel": example(_with_kernel, dtype)},
        version=ATTENTION.revision,
        tolerance=HALF_PRECISION,
        exact={
            "formula": example(_by_hand, mx.float32),
            "kernel": example(_with_kernel, mx.float32),
        },
    )
    return chosen == "kernel"
