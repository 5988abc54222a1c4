"""Cross entropy of softly capped logits, in chunks: the logits never all exist at once.

The logits of a batch are larger than everything else: 8 rows of 2,048 tokens and a vocabulary of
65,536 make 4 GB. Training needs only the gradients of their mean loss, so those are computed along
with the loss, chunk by chunk: nothing is held, or computed again, for the backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from mlxchat.autotune import fastest, remembered
from mlxchat.model.cpu import exp, log_sum_exp, sum_last, tanh
from mlxchat.model.kernels.loss import CROSS_ENTROPY, cross_entropy_kernel
from mlxchat.model.norm import HALF_PRECISION, Pair
from mlxchat.model.size import chunk_size
from mlxchat.runtime import machine, mx

CHUNK_ROWS = 128  # the default of the minimum number of positions per chunk
EXAMPLE = 2**25  # logits with which the kernel is compared
COMPILED = 0.45  # of the formula's time, when compiled
FASTEST_CHUNK_ROWS = {"cpu": 128, "cuda": 2048, "metal": 1024}  # by backend, measured


CrossEntropy = Callable[[mx.array, mx.array, float, mx.array], tuple[mx.array, mx.array]]
"""The formula below, or the kernel that computes the same."""


def soft_cap(logits: mx.array, bound: float) -> mx.array:
    """Bound logits smoothly between minus and plus ``bound``, in float32."""
    return bound * tanh(logits.astype(mx.float32) / bound)


def cross_entropies(
    x: mx.array,
    weight: mx.array,
    targets: mx.array,
    vocab_size: int,
    softcap: float,
    chunk_rows: int,
) -> mx.array:
    """Return the cross entropy at every position in nats, (N,) in float32.

    Args:
        x: (N, C) features.
        weight: (V or more, C), of the head; rows beyond the vocabulary are ignored.
        targets: (N,) integers; the loss is 0 where the target is -1.
        vocab_size: V.
        softcap: the bound of the logits.
        chunk_rows: the minimum number of positions per chunk.
    """
    weight = weight[:vocab_size].astype(x.dtype)  # (V, C)
    losses: list[mx.array] = []
    for chunk in _chunks(targets.size, vocab_size, chunk_rows):
        # `depends` computes the chunks one after another: only one holds its logits at a time.
        logits = soft_cap(mx.depends(x[chunk], losses[-1:]) @ weight.T, softcap)  # (rows, V)
        chosen = _chosen(logits, targets[chunk])  # (rows,)
        losses.append((log_sum_exp(logits) - chosen) * (targets[chunk] >= 0))
    return mx.concatenate(losses)  # (N,)


def mean_cross_entropy(
    x: mx.array,
    weight: mx.array,
    targets: mx.array,
    vocab_size: int,
    softcap: float,
    chunk_rows: int,
    count: mx.array | None = None,
    weights: mx.array | None = None,
    *,
    frozen: bool = False,
    added: Pair | None = None,
) -> mx.array:
    """Return the mean of `cross_entropies` over the targets that are not -1, a float32 scalar.

    Args:
        x, weight, targets, vocab_size, softcap, chunk_rows: as for `cross_entropies`.
        count: divide the sum by this instead of by the number of those targets. A micro-batch
            passes the number in its whole step, so that the shares add up to the step's mean.
        weights: (N,), multiply the losses by these before they are added up; None for 1 each.
        frozen: whether the weight is not trained, so that its gradient is left out.
        added: (N, R) features and a (V or more, R) weight whose product is added to the logits: an
            adapter on a frozen head, which is trained.
    """
    if count is None:
        count = mx.maximum((targets >= 0).sum(), 1)
    cross_entropy = _fastest_cross_entropy(vocab_size, x.dtype)

    # Of the head, and of the adapter on it: features and a weight, whose products are the logits.
    @mx.custom_function
    def loss_and_gradients(*features_and_weights: mx.array) -> list[mx.array]:
        whole = features_and_weights[1::2]
        pairs = [  # the weights in half precision on GPUs
            (features, matrix[:vocab_size].astype(x.dtype))
            for features, matrix in zip(features_and_weights[::2], whole, strict=True)
        ]
        losses, d_features, d_weights = _in_chunks(
            pairs, targets, weights, count, softcap, chunk_rows, cross_entropy, frozen
        )
        total = sum_last(losses, axes=1)
        padded = [_with_padding(d, w) for d, w in zip(d_weights, whole, strict=True)]
        return [total / count, *d_features, *padded]

    @loss_and_gradients.vjp
    def scale(
        primals: Sequence[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
    ) -> list[mx.array]:
        cotangent, half = cotangents[0], len(primals) // 2
        d_features = [(cotangent * d).astype(d.dtype) for d in outputs[1 : 1 + half]]
        d_weights = [cotangent * d for d in outputs[1 + half :]]
        if frozen:  # never computed
            d_weights[0] = mx.zeros_like(primals[1])
        return [each for pair in zip(d_features, d_weights, strict=True) for each in pair]

    arguments = x, weight, *(added or ())
    outputs = cast(Callable[..., Sequence[mx.array]], loss_and_gradients)(*arguments)
    return outputs[0]


def _in_chunks(
    pairs: Sequence[Pair],
    targets: mx.array,
    weights: mx.array | None,
    count: mx.array,
    softcap: float,
    chunk_rows: int,
    cross_entropy: CrossEntropy,
    frozen: bool,
) -> tuple[mx.array, list[mx.array], list[mx.array]]:
    """Return the weighted loss of each position, (N,), and the gradients of their sum over count.

    Args:
        pairs: features, (N, C), and weights, (V, C), whose products add up to the logits.
        targets, weights, count, softcap, chunk_rows, frozen: as for `mean_cross_entropy`.
        cross_entropy: computes a chunk.

    Returns:
        The losses, the gradient of each pair's features, and that of its weight; a scalar 0 for
        one that is frozen.
    """
    vocab_size = len(pairs[0][1])
    share = 1 / count if weights is None else weights / count  # () or (N,), of each loss
    losses: list[mx.array] = []
    d_features: list[list[mx.array]] = [[] for _ in pairs]
    d_weights = [mx.array(0.0)] * len(pairs)
    for chunk in _chunks(targets.size, vocab_size, chunk_rows):
        # One chunk after another: by then the logits of the one before are no longer needed.
        before = [*losses[-1:], *d_weights, *(each[-1] for each in d_features if each)]
        rows = [mx.depends(features[chunk], before) for features, _ in pairs]
        logits = rows[0] @ pairs[0][1].T  # (rows, V)
        for features, (_, matrix) in zip(rows[1:], pairs[1:], strict=True):
            logits = logits + features @ matrix.T
        chunk_share = share if weights is None else share[chunk]
        loss, d_logits = cross_entropy(logits, targets[chunk], softcap, chunk_share)
        losses.append(loss if weights is None else loss * weights[chunk])  # (rows,)
        for i, (features, (_, matrix)) in enumerate(zip(rows, pairs, strict=True)):
            d_features[i].append(d_logits @ matrix)  # (rows, C)
            if i or not frozen:
                d_weights[i] = d_weights[i] + d_logits.T @ features  # (V, C)
    return mx.concatenate(losses), [mx.concatenate(parts) for parts in d_features], d_weights


def _with_padding(gradient: mx.array, weight: mx.array) -> mx.array:
    """Return the gradient of a weight, with zeros for rows beyond the vocabulary."""
    if gradient.ndim == 0 or len(gradient) == len(weight):
        return gradient
    return mx.concatenate([gradient, mx.zeros_like(weight[len(gradient) :])])


def cross_entropy_formula(
    logits: mx.array, targets: mx.array, softcap: float, weight: mx.array
) -> tuple[mx.array, mx.array]:
    """Return the loss of every row, and the gradient of their weighted sum.

    Args:
        logits: (R, V), before the soft cap.
        targets: (R,) integers; the loss and the gradient are 0 where the target is -1.
        softcap: the bound of the logits.
        weight: of the losses in the sum, a scalar or (R,).

    Returns:
        (R,) in float32, and (R, V) in the dtype of the logits.
    """
    kept = targets >= 0  # (R,)
    capped = soft_cap(logits, softcap)  # (R, V)
    normaliser = log_sum_exp(capped)  # (R,)
    losses = (normaliser - _chosen(capped, targets)) * kept  # (R,)
    # The gradient of a cross entropy is softmax(logits) - one_hot(target).
    share = (kept * weight)[:, None]  # (R, 1)
    # exp(logits) as `log_sum_exp` computes it too; it cannot overflow, the cap bounds it.
    softmax = exp(capped) * (share / exp(normaliser)[:, None])  # (R, V)
    columns = mx.arange(logits.shape[-1])
    d_capped = softmax - mx.where(columns == targets[:, None], share, 0.0)
    # The derivative of the soft cap, bound * tanh(z / bound), is 1 - tanh(z / bound)^2.
    d_logits = d_capped * (1 - (capped / softcap).square())
    return losses, d_logits.astype(logits.dtype)


@remembered
def _fastest_cross_entropy(vocab_size: int, dtype: mx.Dtype) -> CrossEntropy:
    if machine().backend == "cpu":
        return cross_entropy_formula
    # The formula is timed one operation after another: CUDA takes a minute to compile it, after
    # which it takes half as long.
    ways = {"formula": cross_entropy_formula, "kernel": cross_entropy_kernel}
    chosen = fastest(
        f"loss over {vocab_size:,} tokens, {dtype}",
        {name: _example(way, vocab_size, dtype) for name, way in ways.items()},
        version=CROSS_ENTROPY.revision,
        tolerance=HALF_PRECISION,
        exact={name: _example(way, vocab_size, mx.float32) for name, way in ways.items()},
        share=COMPILED,
    )
    return cross_entropy_kernel if chosen == "kernel" else cross_entropy_formula


def _example(way: CrossEntropy, V: int, dtype: mx.Dtype) -> Callable[[], Sequence[mx.array]]:
    """Return a function that computes the loss of random logits, some of them far out."""
    rows, softcap, key = max(8, EXAMPLE // V), 15.0, mx.random.key(0)
    logits = (10 * mx.random.normal((rows, V), key=key)).astype(dtype)
    logits[0, :4] = mx.array([1e4, -1e4, softcap, 0], dtype)
    targets = mx.random.randint(-1, V, (rows,), key=key)
    return lambda: way(logits, targets, softcap, mx.array(1 / rows))


def _chunks(N: int, vocab_size: int, chunk_rows: int) -> Iterator[slice]:
    rows = chunk_size(N, vocab_size, chunk_rows)
    return (slice(start, start + rows) for start in range(0, N, rows))


def _chosen(values: mx.array, targets: mx.array) -> mx.array:
    """Return each row's value at its target, (N,); an arbitrary one where the target is -1."""
    return mx.take_along_axis(values, mx.maximum(targets, 0)[:, None], axis=-1)[:, 0]
