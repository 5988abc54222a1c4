"""The order of the backward pass, which decides how much memory it takes.

MLX computes the outputs of a graph, such as gradients, as late as it can, and until then holds all
that they are computed from. `ordered_loss` makes each stage of the model add its gradients to those
of earlier micro-batches before the backward pass enters the stage below.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

from mlxchat.model.dropout import NO_DROPOUT, Dropout
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.loss import CHUNK_ROWS
from mlxchat.model.rope import Rope
from mlxchat.runtime import mx

HEAD_PREFIX = "lm_head."  # of the names of the head's parameters


def ordered_loss(
    model: GPT,
    ids: mx.array,
    targets: mx.array,
    chunk_rows: int = CHUNK_ROWS,
    count: mx.array | None = None,
    *,
    summed: Mapping[str, mx.array] | None = None,
    checkpoint: bool = False,
    dropout: Dropout = NO_DROPOUT,
    weights: mx.array | None = None,
) -> mx.array:
    """Return `GPT.loss`, with control over its backward pass.

    Args:
        model: the network.
        ids, targets, chunk_rows, count: as for `GPT.loss`.
        summed: the gradients of earlier micro-batches by parameter name. Differentiating the loss
            then gives their sum with this micro-batch's gradients.
        checkpoint: compute each layer's activations again in the backward pass instead of holding
            them (https://arxiv.org/abs/1604.06174).
        dropout, weights: as for `GPT.loss`.
    """
    if not summed and not checkpoint:
        # Nothing to add and nothing to compute again: MLX's own order will do.
        return model.loss(ids, targets, chunk_rows, count, dropout, weights)
    embedding, layers, head = _stages(model)
    run = _checkpointed if checkpoint else _plain
    rope = Rope(model.config.traits.rope_base, 0)
    _, embedding = _gate([], embedding, summed)
    with model.using(embedding):
        first, *rest = dropout.split(1 + model.config.n_layer)
        x = x0 = middle = model.embed(ids, dropout=first)  # (B, T, C)
        stages = zip(model.lambdas(), layers, rest, strict=True)
        for i, (lambdas, parameters, layer_dropout) in enumerate(stages):
            streams = [x, x0, *lambdas.values()] if lambdas else [x]
            streams, parameters = _gate(streams, parameters, summed)
            stage = partial(_layer, model, i, ids, rope, layer_dropout)
            x, *mixed = run(stage, streams, parameters)  # (B, T, C)
            if mixed:
                [x0] = mixed  # so that its gradient from the layers above passes this gate too
            if i == model.config.backout_layer:
                middle = x
        x = model.final_norm(x, middle)  # (B, T, C)
    [x], head = _gate([x], head, summed)
    with model.using(head):
        return model.mean_loss(x, targets, chunk_rows, count, weights)


def _stages(model: GPT) -> tuple[Arrays, list[Arrays], Arrays]:
    """Split what is trained: embedding and scalars, the layers one by one, and the head."""
    rest = model.named_trainable()
    head = {name: rest.pop(name) for name in list(rest) if name.startswith(HEAD_PREFIX)}
    layers = []
    for i in range(model.config.n_layer):
        prefixes = f"transformer.h.{i}.", f"value_embeds.{i}."
        layers.append({name: rest.pop(name) for name in list(rest) if name.startswith(prefixes)})
    return rest, layers, head


def _gate(
    streams: list[mx.array], parameters: Arrays, summed: Mapping[str, mx.array] | None
) -> tuple[list[mx.array], Arrays]:
    """Return both unchanged, and set up a gate where a stage of the model begins.

    In the backward pass the gate adds the gradients of the stage's ``parameters`` to ``summed``,
    and only then passes on those of its input ``streams``: the stage below begins when this one
    holds nothing any more.
    """
    names, n = list(parameters), len(streams)
    if not (names or n):
        return [], {}

    @mx.custom_function
    def identity(*arrays: mx.array) -> list[mx.array]:
        return list(arrays)

    @identity.vjp
    def sum_first(_: object, cotangents: list[mx.array], __: object) -> list[mx.array]:
        gradients = cotangents[n:]
        if summed:
            pairs = zip(names, gradients, strict=True)
            gradients = [summed[name] + gradient for name, gradient in pairs]
        if n:
            cotangents[:n] = mx.depends(cotangents[:n], gradients)
        return [*cotangents[:n], *gradients]

    arrays = cast(Callable[..., list[mx.array]], identity)(*streams, *parameters.values())
    return arrays[:n], dict(zip(names, arrays[n:], strict=True))


ModelStage = Callable[[list[mx.array], Arrays], list[mx.array]]
"""A part of the network as a function from input streams and parameters to output streams.

It must not close over any other array that has a gradient.
"""


def _layer(
    model: GPT,
    i: int,
    ids: mx.array,
    rope: Rope,
    dropout: Dropout,
    streams: list[mx.array],
    parameters: Arrays,
) -> list[mx.array]:
    """Run layer ``i``; with the first five arguments bound, this is a `ModelStage`."""
    x, *mixed = streams
    x0, *scalars = mixed or [x]  # a layer without lambdas does not use it
    lambdas = dict(zip(model.config.traits.lambdas, scalars, strict=True))
    with model.using(parameters):
        x, x0 = model.layer(i, x, x0, lambdas, ids, rope, dropout=dropout)
    return [x, x0] if mixed else [x]


def _plain(stage: ModelStage, streams: list[mx.array], parameters: Arrays) -> list[mx.array]:
    return stage(streams, parameters)


def _checkpointed(stage: ModelStage, streams: list[mx.array], parameters: Arrays) -> list[mx.array]:
    """Run a stage so that only its inputs are held for the backward pass, which runs it again."""
    names, n = list(parameters), len(streams)

    def of_arrays(*arrays: mx.array) -> list[mx.array]:
        return stage(list(arrays[:n]), dict(zip(names, arrays[n:], strict=True)))

    @mx.custom_function
    def forward(*arrays: mx.array) -> list[mx.array]:
        return of_arrays(*arrays)

    @forward.vjp
    def recompute(
        arrays: Sequence[mx.array], cotangents: list[mx.array], _: object
    ) -> list[mx.array]:
        # The cotangents come from the stages above. Waiting for them keeps MLX from computing the
        # activations of all stages again at once.
        later = mx.depends(list(arrays), cotangents)
        return mx.vjp(of_arrays, later, cotangents)[1]

    return cast(Callable[..., list[mx.array]], forward)(*streams, *parameters.values())
