"""The order of the backward pass, on which its memory depends.

MLX computes a graph's outputs, such as gradients, as late as it can, and meanwhile holds what they
follow from. Here each part of a model adds its gradients to those of the micro-batches before, and
only then the part below it begins.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from mlxchat.runtime import mx

Arrays = dict[str, mx.array]
Streams = list[mx.array]


class Backward(NamedTuple):
    """How gradients are formed.

    Attributes:
        summed: gradients so far by parameter's name, to which others are added, or nothing:
            what differentiating gives is their sum.
        checkpoint: whether each block's activations are computed again in the backward pass
            (https://arxiv.org/abs/1604.06174), not held from the forward pass on.
    """

    summed: Mapping[str, mx.array] = {}
    checkpoint: bool = False

    @property
    def in_any_order(self) -> bool:
        """Whether nothing is summed and everything held: MLX's own order will do."""
        return not (self.summed or self.checkpoint)

    def enter(self, streams: Streams, parameters: Arrays) -> tuple[Streams, Arrays]:
        """The arrays unchanged; and in the backward pass a gate where a part of the model begins.

        There the gradients of ``parameters`` are added to ``summed`` before those of ``streams``
        are handed on, so that the part below begins only when this one holds nothing more.
        """
        if self.in_any_order:
            return streams, parameters
        names, count = list(parameters), len(streams)

        @mx.custom_function
        def same(*arrays: mx.array) -> list[mx.array]:
            return list(arrays)

        @same.vjp
        def sums_first(_: object, cotangents: list[mx.array], __: object) -> list[mx.array]:
            gradients = cotangents[count:]
            if self.summed:
                pairs = zip(names, gradients, strict=True)
                gradients = [self.summed[name] + gradient for name, gradient in pairs]
            if count:
                cotangents[:count] = mx.depends(cotangents[:count], gradients)
            return [*cotangents[:count], *gradients]

        given = [*streams, *parameters.values()]
        arrays = cast(Callable[..., list[mx.array]], same)(*given)
        return arrays[:count], dict(zip(names, arrays[count:], strict=True))

    def call(
        self,
        function: Callable[[Streams, Arrays], mx.array],
        streams: Streams,
        parameters: Arrays,
    ) -> mx.array:
        """``function`` of them; with checkpointing no more than them is held for the backward pass.

        The function closes over no array that has a gradient.
        """
        if not self.checkpoint:
            return function(streams, parameters)
        names, count = list(parameters), len(streams)

        def of_arrays(*arrays: mx.array) -> mx.array:
            return function(list(arrays[:count]), dict(zip(names, arrays[count:], strict=True)))

        @mx.custom_function
        def once(*arrays: mx.array) -> mx.array:
            return of_arrays(*arrays)

        @once.vjp
        def again(arrays: Sequence[mx.array], cotangent: mx.array, _: object) -> list[mx.array]:
            # Not computed before what is above has been: else all would be held at once.
            later = mx.depends(list(arrays), cotangent)
            return mx.vjp(of_arrays, later, [cotangent])[1]

        return cast(Callable[..., mx.array], once)(*streams, *parameters.values())


PLAIN = Backward()
