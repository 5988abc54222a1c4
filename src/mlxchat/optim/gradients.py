"""The loss and the gradients of a micro-batch, compiled."""

from functools import partial
from typing import Protocol, cast

from mlxchat.model.backward import ordered_loss
from mlxchat.model.dropout import Dropout
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.loss import CHUNK_ROWS
from mlxchat.runtime import mx
from mlxchat.streams import in_parts


class Accumulate(Protocol):
    """Computes a micro-batch's share of a step's loss, and adds its gradients to earlier ones."""

    def __call__(
        self,
        parameters: Arrays,
        ids: mx.array,
        targets: mx.array,
        count: mx.array,
        gradients: Arrays,
        key: mx.array | None = None,
        weights: mx.array | None = None,
    ) -> tuple[mx.array, Arrays]:
        """Return the share of the loss, a float32 scalar, and the sums of gradients by name.

        The shares of all micro-batches add up to the mean loss of the step.

        Args:
            parameters: the model's parameters by name.
            ids, targets: (B, T) integers; positions whose target is -1 do not count.
            count: the number of positions that count in the whole step, a scalar, at least 1.
            gradients: the sums so far by parameter name; empty before the first micro-batch.
            key: decides what dropout zeroes; None for no dropout.
            weights: (B,), of the losses of each row; None for 1 each.
        """


def compile_gradients(
    model: GPT,
    chunk_rows: int = CHUNK_ROWS,
    checkpoint: bool = False,
    streams: int = 1,
    dropout: float = 0.0,
) -> Accumulate:
    """Compile the forward and the backward pass of ``model``.

    Args:
        chunk_rows: the minimum number of positions per chunk of the loss.
        checkpoint: compute each block's activations again in the backward pass.
        streams: divide the rows, a multiple of this, into so many parts, each on a CPU stream of
            its own (`mlxchat.streams`).
        dropout: the share of numbers that are zeroed, see `mlxchat.model.dropout`.
    """

    def share_of_loss(
        parameters: Arrays,
        ids: mx.array,
        targets: mx.array,
        count: mx.array,
        summed: Arrays,
        drop: Dropout,
        weights: mx.array | None,
    ) -> mx.array:
        with model.using(parameters):
            return ordered_loss(
                model,
                ids,
                targets,
                chunk_rows,
                count,
                summed=summed,
                checkpoint=checkpoint,
                dropout=drop,
                weights=weights,
            )

    def accumulate(
        parameters: Arrays,
        ids: mx.array,
        targets: mx.array,
        count: mx.array,
        gradients: Arrays,
        key: mx.array | None = None,
        weights: mx.array | None = None,
    ) -> tuple[mx.array, Arrays]:
        compute = mx.value_and_grad(share_of_loss)
        parts = zip(
            mx.split(ids, streams),
            mx.split(targets, streams),
            [gradients, *[Arrays()] * (streams - 1)],  # the first part adds to the sums so far
            Dropout(dropout, key).split(streams),
            [None] * streams if weights is None else mx.split(weights, streams),
            strict=True,
        )
        results = in_parts(
            [
                partial(compute, parameters, ids, targets, count, summed, drop, weights)
                for ids, targets, summed, drop, weights in parts
            ]
        )
        share, gradients = results[0]
        for other_share, others in results[1:]:
            share = share + other_share
            gradients = {name: gradient + others[name] for name, gradient in gradients.items()}
        return share, gradients

    return cast(Accumulate, mx.compile(accumulate))
