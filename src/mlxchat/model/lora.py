"""The adapter of a whole model: put on, read back, or made part of the weights.

An adapter's arrays have the names of mlx-lm: ``transformer.h.0.attn.c_q.lora_a``. They alone are
trained; the model's own weights are frozen (`GPT.named_trainable`).
"""

from collections.abc import Collection, Mapping

from mlxchat.errors import CheckpointError
from mlxchat.model.adapter import LoraConfig, adapted_layers, adapter_shapes
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.linear import Linear
from mlxchat.model.lora_linear import ADAPTER_ARRAYS, LoraLinear
from mlxchat.model.quantized import (
    INNER_LAYER,
    QuantizedLinear,
    dequantized,
    formats_of,
    quantize_layers,
)
from mlxchat.runtime import mx, nn, tree_unflatten


def add_adapter(model: GPT, config: LoraConfig, seed: int = 0) -> None:
    """Put a new adapter on a model, in place, and freeze everything else.

    The model computes what it did before, to the bit with LoRA, until the adapter is trained.

    Args:
        model: a model without an adapter, quantized or not.
        config: the adapter.
        seed: the same seed and shapes give the same initial values.

    Raises:
        ConfigError: the model has not the layers that the adapter is to change.
    """
    names = sorted(adapted_layers(model.config, config))
    keys = mx.random.split(mx.random.key(seed), len(names))
    layers = _layers(model)
    _replace(
        model,
        {
            name: LoraLinear(layers[name], config, key)
            for name, key in zip(names, keys, strict=True)
        },
    )
    model.adapter = config
    model.freeze()
    for layer in _adapters(model).values():
        layer.unfreeze(recurse=False, keys=list(ADAPTER_ARRAYS), strict=False)
    mx.eval(model.named_trainable())


def load_adapter(model: GPT, config: LoraConfig, arrays: Mapping[str, mx.array]) -> None:
    """Put a trained adapter on a model, in place.

    Args:
        model: a model without an adapter, of the shape that the adapter was trained on.
        config: the adapter.
        arrays: the adapter's arrays by name, all of them and no others.

    Raises:
        ConfigError: the model has not the layers that the adapter changes.
        CheckpointError: an array is missing, unknown or of another shape; each is named.
    """
    require_adapter_fits(model, config, arrays)
    add_adapter(model, config)
    trained = [(name, array.astype(mx.float32)) for name, array in arrays.items()]
    model.load_weights(trained, strict=False)


def require_adapter_fits(model: GPT, config: LoraConfig, arrays: Mapping[str, mx.array]) -> None:
    """Check that arrays are those of an adapter for a model.

    Raises:
        ConfigError: the model has not the layers that the adapter changes.
        CheckpointError: an array is missing, unknown or of another shape; each is named.
    """
    expected = adapter_shapes(model.config, config)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - arrays.keys())]
    faults += [f"{name} is unknown" for name in sorted(arrays.keys() - expected.keys())]
    faults += [
        f"{name} has shape {arrays[name].shape}, not {shape}"
        for name, shape in expected.items()
        if name in arrays and arrays[name].shape != shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"The adapter does not fit the model: {'; '.join(faults[:3])}{more}.",
            "Use the model it was trained on, and its own rank and modules.",
        )


def adapter_arrays(model: GPT) -> Arrays:
    """Return the arrays of a model's adapter by name; none if it has no adapter."""
    return model.named_trainable() if model.adapter is not None else {}


def fuse_adapter(model: GPT, dequantize: bool = True) -> None:
    """Make a model's adapter part of its weights, in place.

    Args:
        model: a model with an adapter, not prepared for inference.
        dequantize: make a quantized model a plain one, in float32. Otherwise its layers are
            quantized again as they were, and much of what the adapter learned is lost.
    """
    fused = {name: layer.fused(dequantize) for name, layer in _adapters(model).items()}
    _replace(model, fused)
    if dequantize:
        _dequantize_rest(model)
    model.adapter = None
    model.unfreeze()
    mx.eval(model.parameters())


def plain_weights(model: GPT) -> Arrays:
    """Return the weights of a model without adapter, not quantized, that computes the same.

    Args:
        model: any model, which does not change, not prepared for inference.
    """
    if model.adapter is None:
        return model.named_parameters()
    fused = copied(model)
    fuse_adapter(fused)
    return fused.named_parameters()


def _dequantize_rest(model: GPT) -> None:
    """Replace quantized layers, embeddings among them, by plain ones in float32."""
    plain: dict[str, nn.Module] = {}
    for name, layer in _layers(model).items():
        if isinstance(layer, QuantizedLinear | nn.QuantizedEmbedding):
            weight = dequantized(layer).astype(mx.float32)
            rows, columns = weight.shape
            is_linear = isinstance(layer, QuantizedLinear)
            plain[name] = Linear(columns, rows) if is_linear else nn.Embedding(rows, columns)
            plain[name].weight = weight
    _replace(model, plain)


def copied(model: GPT) -> GPT:
    """Return a copy that shares its arrays; replacing them in it leaves ``model`` unchanged.

    Args:
        model: quantized or not, with or without an adapter, not prepared for inference.
    """
    copy = GPT(model.config, model.dtype)
    formats = formats_of(model)
    quantize_layers(copy, {name.removesuffix(f".{INNER_LAYER}"): formats[name] for name in formats})
    if model.adapter is not None:
        add_adapter(copy, model.adapter)
    copy.load_weights(list(model.named_parameters().items()))
    return copy


def prepare_together(base: GPT, adapted: Collection[GPT]) -> None:
    """Prepare a model for inference, and the same model with adapters; its weights are held once.

    Args:
        base: the model.
        adapted: `copied` from it, with an adapter on each.
    """
    for model in adapted:  # while the weights are as exact as they are stored
        for layer in _adapters(model).values():
            layer.cache_dora_scale()
    base.cast_matrices()
    for model in adapted:
        _share_weights(model, base)
    base.prepare_for_inference()
    for model in adapted:
        model.prepare_for_inference()
        _share_weights(model, base)


def _share_weights(model: GPT, base: GPT) -> None:
    """Have a model with an adapter use the arrays of the same model without."""
    own = base.named_parameters()
    plain = {name: name.replace(f".{INNER_LAYER}.", ".") for name in model.named_parameters()}
    shared = [(name, own[plain[name]]) for name in plain if plain[name] in own]
    model.load_weights(shared, strict=False)


def _layers(model: GPT) -> dict[str, nn.Module]:
    return dict(model.named_modules())


def _adapters(model: GPT) -> dict[str, LoraLinear]:
    """Return the layers with an adapter, by the name of the layer."""
    return {name: layer for name, layer in _layers(model).items() if isinstance(layer, LoraLinear)}


def _replace(model: GPT, layers: Mapping[str, nn.Module]) -> None:
    if layers:
        model.update_modules(tree_unflatten(list(layers.items())))
