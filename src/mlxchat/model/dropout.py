"""Dropout: zeroing numbers at random in training, so that text is not learned by heart.

It applies to what each attention and each MLP adds to the residual stream, and to the rows of the
embeddings, which alone could learn which token follows which in a text that is read many times.
"""

from collections.abc import Callable
from typing import NamedTuple

from mlxchat.runtime import mx


class Dropout(NamedTuple):
    """Zeroes numbers at random, and scales up the others so that the expected value stays.

    The same key zeroes the same numbers. Without a key nothing is changed.

    >>> dropout = Dropout(0.5, mx.random.key(0))
    >>> first, second = dropout.split(2)
    >>> bool(mx.array_equal(first(mx.ones((8,))), first(mx.ones((8,)))))
    True

    Attributes:
        rate: the share that is zeroed, below 1.
        key: of `mx.random`; None for no dropout.
    """

    rate: float = 0.0
    key: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """Return ``x`` of any shape with some of its numbers zeroed."""
        if self.key is None:
            return x
        kept = mx.random.bernoulli(1 - self.rate, x.shape, self.key)
        return mx.where(kept, x * (1 / (1 - self.rate)), mx.array(0, x.dtype))

    def added(
        self, layer: Callable[[mx.array, mx.array | None], mx.array], x: mx.array, onto: mx.array
    ) -> mx.array:
        """Return ``onto`` plus what is left of the layer's output for ``x``.

        Without dropout the kernel of the layer's product does the addition.
        """
        return layer(x, onto) if self.key is None else onto + self(layer(x, None))

    def split(self, parts: int) -> "list[Dropout]":
        """Return dropouts of the same rate that zero other numbers each."""
        if self.key is None:
            return [self] * parts
        return [Dropout(self.rate, key) for key in mx.random.split(self.key, parts)]


NO_DROPOUT = Dropout()
