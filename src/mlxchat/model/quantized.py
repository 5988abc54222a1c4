"""Layers with quantized weights. They are not trained, but adapters on them are."""

from collections.abc import Mapping
from typing import cast

from mlxchat.model.quantization import Format
from mlxchat.runtime import machine, mx, nn

INNER_LAYER = "linear"  # the name of a layer within one that has an adapter
DIRECT_ROWS = 4  # up to this many, MLX's quantized product on CPUs beats dequantizing first


class QuantizedLinear(nn.QuantizedLinear):
    """A quantized linear layer without bias, called like `mlxchat.model.linear.Linear`."""

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """Map (..., in_features) to (..., out_features), and add ``onto``."""
        few = x.size <= DIRECT_ROWS * x.shape[-1]
        y = self._quantized_product(x) if few else self._product(x)
        return y if onto is None else onto + y

    @property
    def dense(self) -> mx.array:
        """The dequantized weight, (out_features, in_features)."""
        return dequantized(self)

    def _quantized_product(self, x: mx.array) -> mx.array:
        y: mx.array = super().__call__(x)
        return y.astype(x.dtype)  # which the scales may not have

    def _product(self, x: mx.array) -> mx.array:
        """Return ``x @ self.dense.T``, whose gradient takes little time and memory.

        On CPUs MLX's product with quantized weights is not blocked and reaches 1 GFLOP/s, where
        dequantizing and then the BLAS reach hundreds. Of its gradient the same is true, and CUDA
        has only its simplest kernel for that. There the weight is dequantized again: those of all
        layers, held for the backward pass, would take what quantizing them saved.
        """

        @mx.custom_function
        def product_with(x: mx.array) -> mx.array:
            if machine().backend != "cpu":
                return self._quantized_product(x)
            return x @ self.dense.astype(x.dtype).T

        @product_with.vjp
        def gradient(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
            # That this waits for the cotangent also keeps `mx.compile` from taking both for one.
            return cotangent @ dequantized(self, after=cotangent).astype(x.dtype)

        return cast(mx.array, product_with(x))


def dequantized(layer: nn.Module, after: mx.array | None = None) -> mx.array:
    """Return the weight of a quantized layer, dequantized once ``after`` is there."""
    weight = layer.weight if after is None else mx.depends(layer.weight, after)
    return mx.dequantize(
        weight,
        layer.scales,
        layer.biases,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def quantize_layers(model: nn.Module, formats: Mapping[str, Format]) -> None:
    """Replace layers of the model by quantized ones, in place.

    The weights are quantized lazily, as MLX computes.

    Args:
        model: the model.
        formats: the format of each layer to quantize, by the layer's name.

    Raises:
        ValueError: MLX has no such format, or the group size does not divide a layer's rows.
    """

    def chosen(name: str, _: nn.Module) -> dict[str, int | str] | bool:
        return formats[name].model_dump() if name in formats else False

    nn.quantize(model, class_predicate=chosen)


def formats_of(model: nn.Module) -> dict[str, Format]:
    """Return the format of each quantized layer of a model, by the layer's name."""
    return {
        name.removesuffix(f".{INNER_LAYER}"): Format(
            group_size=layer.group_size, bits=layer.bits, mode=layer.mode
        )
        for name, layer in model.named_modules()
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
