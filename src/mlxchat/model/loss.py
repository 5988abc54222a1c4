"""Cross entropy of softly capped logits, in chunks of rows, so that they never all exist at once.

The logits of a batch are larger than everything else: 8 rows of 2,048 tokens and a vocabulary of
65,536 make 4 GB of them. Training needs the gradients of their mean loss only, and those are formed
along with the loss, chunk by chunk, so that nothing is kept or computed again for a backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from mlxchat.model.cpu import exp, log_sum_exp, tanh
from mlxchat.model.size import chunk_rows
from mlxchat.runtime import mx

LOSS_ROWS = 128  # positions in a chunk, at least
CHUNK_ROWS = {"cpu": 128, "cuda": 2048, "metal": 1024}  # the fastest by backend


def soft_cap(logits: mx.array, bound: float) -> mx.array:
    """Bound logits between plus and minus ``bound``, in float32."""
    return bound * tanh(logits.astype(mx.float32) / bound)


def cross_entropies(
    x: mx.array, weight: mx.array, targets: mx.array, vocab_size: int, softcap: float, rows: int
) -> mx.array:
    """Nats at every position, (N,) float32; 0 where the target is -1.

    Args:
        x: (N, C) features.
        weight: of the head, (V or more, C); rows beyond the vocabulary are left out.
        softcap: bound of the logits.
        targets: (N,) integers.
        rows: positions in a chunk, at least.
    """
    weight = weight[:vocab_size].astype(x.dtype)
    losses: list[mx.array] = []
    for chunk in _chunks(targets.size, vocab_size, rows):
        logits = soft_cap(mx.depends(x[chunk], losses[-1:]) @ weight.T, softcap)
        chosen = _chosen(logits, targets[chunk])
        losses.append((log_sum_exp(logits) - chosen) * (targets[chunk] >= 0))
    return mx.concatenate(losses)


def mean_cross_entropy(
    x: mx.array,
    weight: mx.array,
    targets: mx.array,
    vocab_size: int,
    softcap: float,
    rows: int,
    count: mx.array | None = None,
) -> mx.array:
    """The mean of `cross_entropies` where the target is not -1, a float32 scalar.

    Args:
        count: what their sum is divided by, where they are a share of those whose mean it is.
    """
    if count is None:
        count = mx.maximum((targets >= 0).sum(), 1)

    @mx.custom_function
    def loss_and_gradients(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        half, columns = weight[:vocab_size].astype(x.dtype), mx.arange(vocab_size)
        total, of_weight = mx.array(0.0), mx.array(0.0)
        of_x: list[mx.array] = []
        for chunk in _chunks(targets.size, vocab_size, rows):
            # One chunk after another: nothing of the last one's logits is needed any more.
            features = mx.depends(x[chunk], [total, of_weight, *of_x[-1:]])
            y = targets[chunk]
            kept = y >= 0
            logits = soft_cap(features @ half.T, softcap)
            normaliser = log_sum_exp(logits)
            total = total + ((normaliser - _chosen(logits, y)) * kept).sum()
            share = (kept / count)[:, None]
            # exp(logits) by itself, as the normaliser needs it: they are bounded.
            expected = exp(logits) * (share / exp(normaliser)[:, None])
            of_capped = expected - mx.where(columns == y[:, None], share, 0.0)
            of_logits = (of_capped * (1 - (logits / softcap).square())).astype(x.dtype)
            of_x.append(of_logits @ half)
            of_weight = of_weight + of_logits.T @ features
        if len(weight) > vocab_size:
            of_weight = mx.concatenate([of_weight, mx.zeros_like(weight[vocab_size:])])
        return total / count, mx.concatenate(of_x), of_weight

    @loss_and_gradients.vjp
    def _scaled(
        _: object, cotangents: list[mx.array], outputs: list[mx.array]
    ) -> tuple[mx.array, mx.array]:
        scale, (_, of_x, of_weight) = cotangents[0], outputs
        return (scale * of_x).astype(of_x.dtype), scale * of_weight

    outputs = cast(Callable[..., Sequence[mx.array]], loss_and_gradients)(x, weight)
    return outputs[0]


def _chunks(N: int, vocab_size: int, least: int) -> Iterator[slice]:
    rows = chunk_rows(N, vocab_size, least)
    return (slice(start, start + rows) for start in range(0, N, rows))


def _chosen(values: mx.array, targets: mx.array) -> mx.array:
    """The value at each row's target, (N,), whatever it is where the target is -1."""
    return mx.take_along_axis(values, mx.maximum(targets, 0)[:, None], axis=-1)[:, 0]
