"""The linear layer that everything in the network is made of."""

from mlxchat.model.product import product
from mlxchat.model.quantized import QuantizedLinear
from mlxchat.runtime import mx, nn


class Linear(nn.Linear):
    """A linear layer without bias. Its float32 weight is cast to the dtype of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """Map (..., in_features) to (..., out_features), and add ``onto``.

        The addition is done in the kernel of the product where there is one for both.
        """
        return product(x, self.weight.astype(x.dtype), onto)

    @property
    def dense(self) -> mx.array:
        """The weight as one matrix, (out_features, in_features), as `QuantizedLinear.dense` is."""
        return self.weight

    def to_quantized(  # type: ignore[override]  # only the arguments that we use
        self, group_size: int, bits: int, mode: str
    ) -> QuantizedLinear:
        """Return this layer with its weight quantized; `nn.quantize` calls this."""
        layer: QuantizedLinear = QuantizedLinear.from_linear(self, group_size, bits, mode)
        return layer
