"""Layers whose weights are quantized: to infer with, not to train."""

from collections.abc import Mapping

from mlxchat.model.quantization import Format
from mlxchat.runtime import machine, mx, nn

FEW_ROWS = 4  # up to which MLX's quantized product on CPUs is quicker than dequantizing first


class QuantizedLinear(nn.QuantizedLinear):
    """A quantized linear layer without bias, to be called as `mlxchat.model.block.Linear` is."""

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """(..., in_features) to (..., out_features), added to ``onto``.

        On CPUs MLX has no blocked product with quantized weights: 1 GFLOP/s, where dequantizing
        and the BLAS have hundreds.
        """
        if machine().backend == "cpu" and x.size > FEW_ROWS * x.shape[-1]:
            y = x @ self.dense.astype(x.dtype).T
        else:
            y = super().__call__(x).astype(x.dtype)  # the scales may be of another one
        return y if onto is None else onto + y

    @property
    def dense(self) -> mx.array:
        """The weight as one matrix of numbers again, (out_features, in_features)."""
        return mx.dequantize(
            self.weight,
            self.scales,
            self.biases,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


def quantize_layers(model: nn.Module, formats: Mapping[str, Format]) -> None:
    """Replace the layers of these names by quantized ones, in place; lazily, as MLX computes.

    Raises:
        ValueError: MLX has no such format, or a layer's rows are no whole number of groups.
    """

    def chosen(name: str, _: nn.Module) -> dict[str, int | str] | bool:
        return formats[name].model_dump() if name in formats else False

    nn.quantize(model, class_predicate=chosen)


def formats_of(model: nn.Module) -> dict[str, Format]:
    """The format of each layer of a model that is quantized, by its name."""
    return {
        name: Format(group_size=layer.group_size, bits=layer.bits, mode=layer.mode)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
