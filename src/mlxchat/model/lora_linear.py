"""A linear layer with an adapter around it: LoRA, and DoRA.

    LoRA  y = x W^T + scale * (x a) b
    DoRA  y = (x W^T + scale * (x a) b) * m / |rows of W + scale * (a b)^T|

W is (out, in) and stays as it is; a is (in, rank), b (rank, out) and m, the magnitudes, (out,). In
DoRA's gradient the norms of the rows count as constants, as its paper says (section 4.3) and mlx-lm
computes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlxchat.model.adapter import LoraConfig
from mlxchat.model.dropout import NO_DROPOUT, Dropout
from mlxchat.model.linear import Linear
from mlxchat.model.quantized import QuantizedLinear
from mlxchat.runtime import mx, nn

ADAPTER_ARRAYS = ("lora_a", "lora_b", "m")  # of a layer; the last of DoRA only


class LoraLinear(nn.Module):
    """A linear layer with an adapter, called like the layer itself.

    Args:
        linear: the layer, a `Linear` or a `QuantizedLinear`, which does not change.
        lora: the adapter's rank, scale and kind.
        key: of `mx.random`, for the initial values: what is added begins at zero.

    Attributes:
        linear: the layer inside.
        lora_a, lora_b, m: the adapter's arrays in float32; m only with DoRA.
    """

    linear: Any  # called as `Linear` is
    lora_a: mx.array
    lora_b: mx.array
    m: mx.array

    def __init__(self, linear: nn.Module, lora: LoraConfig, key: mx.array) -> None:
        super().__init__()
        self.linear = linear
        self.scale = lora.scale
        out_features, in_features = linear.dense.shape
        bound = 1 / math.sqrt(in_features)
        self.lora_a = mx.random.uniform(-bound, bound, (in_features, lora.rank), key=key)
        self.lora_b = mx.zeros((lora.rank, out_features))
        if lora.dora:
            self.m = _row_norms(linear.dense.astype(mx.float32))
        self._dropout = NO_DROPOUT
        self._cached_dora_scale: mx.array | None = None  # once the layer no longer changes

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """Map (..., in_features) to (..., out_features), and add ``onto``."""
        added = self.hidden(x) @ self.lora_b.astype(x.dtype)  # (..., out_features)
        dora_scale = self.dora_scale
        y: mx.array = self.linear(x, onto if dora_scale is None else None) + added
        if dora_scale is None:
            return y
        y = dora_scale.astype(x.dtype) * y
        return y if onto is None else onto + y

    def hidden(self, x: mx.array) -> mx.array:
        """Map (..., in_features) to (..., rank), of which ``lora_b`` makes what is added."""
        return self.scale * (self._dropout(x) @ self.lora_a.astype(x.dtype))

    @property
    def dora_scale(self) -> mx.array | None:
        """DoRA's factor of each output, m over the row's norm, (out_features,); None with LoRA."""
        if self._cached_dora_scale is not None or "m" not in self:
            return self._cached_dora_scale
        return self.m / mx.stop_gradient(_row_norms(self._sum()))

    def cache_dora_scale(self) -> None:
        """Compute the factors of DoRA once; from now on the weights must not change."""
        self._cached_dora_scale = self.dora_scale
        mx.eval(self._cached_dora_scale)

    @property
    def dense(self) -> mx.array:
        """The weight of one layer that computes the same, (out_features, in_features), float32."""
        dora_scale = self.dora_scale
        return self._sum() if dora_scale is None else dora_scale[:, None] * self._sum()

    def _sum(self) -> mx.array:
        weight: mx.array = self.linear.dense.astype(mx.float32)
        return weight + self.scale * (self.lora_a @ self.lora_b).T

    def fused(self, dequantize: bool) -> Linear | QuantizedLinear:
        """Return one layer that computes the same, but for rounding.

        Args:
            dequantize: return a layer with a float32 weight also where the one inside is quantized.
                Quantized again, it loses much of what the adapter learned.
        """
        out_features, in_features = self.dense.shape
        layer = Linear(in_features, out_features)
        layer.weight = self.dense
        inside = self.linear
        if dequantize or not isinstance(inside, QuantizedLinear):
            return layer
        return layer.to_quantized(inside.group_size, inside.bits, inside.mode)


def _row_norms(weight: mx.array) -> mx.array:
    """Return the Euclidean norm of each row of (R, C), (R,)."""
    return mx.sqrt(weight.square().sum(axis=1))


@contextmanager
def adapter_dropout(block: nn.Module, dropout: Dropout) -> Iterator[None]:
    """Apply dropout to the inputs of the adapters in a block, inside a ``with`` statement."""
    if dropout.key is None:
        yield
        return
    layers = [layer for layer in block.modules() if isinstance(layer, LoraLinear)]
    for layer, own in zip(layers, dropout.split(len(layers)), strict=True):
        layer._dropout = own
    try:
        yield
    finally:
        for layer in layers:
            layer._dropout = NO_DROPOUT


def concatenated(layers: Sequence[nn.Module]) -> nn.Module | None:
    """Return one layer whose output is the outputs of several for the same input, concatenated.

    The layers cannot be used afterwards. None if they are quantized in different formats, as other
    programs do.
    """
    inside = [layer.linear if isinstance(layer, LoraLinear) else layer for layer in layers]
    if len({_format(layer) for layer in inside}) > 1:
        return None
    adapters = [layer for layer in layers if isinstance(layer, LoraLinear)]
    if adapters:
        first, second = _joined_matrices(layers, [len(layer.weight) for layer in inside])
        dora_scales = [_dora_scale_of(layer) for layer in layers]
    # The first layer becomes the joined one: it keeps its class and quantization format, while its
    # arrays, (out_features, ...), are replaced by the joined rows of all.
    whole = inside[0]
    whole.update({name: mx.concatenate([layer[name] for layer in inside]) for name in whole})
    if not adapters:
        return whole
    adapter = adapters[0]
    adapter.linear, adapter.lora_a, adapter.lora_b = whole, first, second
    if "m" in adapter:
        adapter._cached_dora_scale = mx.concatenate(dora_scales)
    return adapter


def _format(layer: nn.Module) -> tuple[object, ...]:
    return type(layer), *(getattr(layer, name, None) for name in ("bits", "group_size", "mode"))


def _joined_matrices(
    layers: Sequence[nn.Module], outputs: Sequence[int]
) -> tuple[mx.array, mx.array]:
    """Return matrices that add to each layer's outputs what its own do, and nothing to others.

    The second has a block for each adapter, and zeros elsewhere.
    """
    first, second = list[mx.array](), list[mx.array]()
    for i, layer in enumerate(layers):
        if isinstance(layer, LoraLinear):
            first.append(layer.lora_a)
            around = sum(outputs[:i]), sum(outputs[i + 1 :])
            second.append(mx.pad(layer.lora_b, [(0, 0), around]))
    return mx.concatenate(first, axis=1), mx.concatenate(second)


def _dora_scale_of(layer: nn.Module) -> mx.array:
    """Return the factor of each output of a layer, (out_features,), ones if it has none."""
    adapter = layer if isinstance(layer, LoraLinear) else None
    dora_scale = adapter.dora_scale if adapter is not None else None
    inside = adapter.linear if adapter is not None else layer
    return mx.ones(len(inside.weight)) if dora_scale is None else dora_scale
