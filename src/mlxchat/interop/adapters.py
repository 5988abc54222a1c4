"""Adapters in the form of PEFT, Hugging Face's library, and in mlx-lm's, which is ours. No files.

    mlx-lm   y = W x + scale * b' a' x            a (in, rank), b (rank, out), in DoRA m (out,)
    PEFT     y = W x + lora_alpha / r * B A x     A (r, in), B (out, r), in DoRA a magnitude (out,)

(a' is a transposed.) With ``use_rslora`` PEFT divides by the root of r instead. Its patterns give
single layers another rank or alpha; here all layers of an adapter have the same, so that matrices
are filled up with zeros, and scales that differ are multiplied into b: the product stays the same.

Sources: tuners/lora of PEFT 0.21, tuner/utils.py and tuner/lora.py of mlx-lm 0.32.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from mlxchat.checkpoint.files import in_words, one_line
from mlxchat.counts import counted
from mlxchat.errors import CheckpointError, ConfigError
from mlxchat.interop.importers.hugging_face import plain_name, renamed
from mlxchat.model.adapter import HEAD, LoraConfig, adapted_layers, module_of
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import Arrays
from mlxchat.runtime import mx

PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
PEFT_PARTS = {  # the ends of PEFT's names, and ours
    ".lora_A.weight": "lora_a",
    ".lora_B.weight": "lora_b",
    ".lora_magnitude_vector": "m",
    ".lora_magnitude_vector.weight": "m",  # as some programs write it
}
COPIED = (".base_layer.weight", "lm_head.weight", "embed_tokens.weight")
MLX_LM_PARTS = {f".{part}": part for part in ("lora_a", "lora_b", "m")}

# Settings of PEFT that say nothing about what is computed, beside those that are read here.
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("task_type", "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "runtime_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
_READ = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
}
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")  # that leave W as it is

_ANOTHER = (
    "Train it as a plain LoRA or DoRA adapter on the layers' matrices, or merge it "
    "into its base model."
)


class Adapter(NamedTuple):
    """An adapter in our form.

    Attributes:
        lora: its rank, scale and layers.
        arrays: by name, such as ``transformer.h.0.attn.c_q.lora_a``, float32.
    """

    lora: LoraConfig
    arrays: Arrays


class _Adapted(NamedTuple):
    """The arrays of an adapter on one layer, in our orientation."""

    a: mx.array  # (in, rank)
    b: mx.array  # (rank, out)
    m: mx.array | None  # (out,), in DoRA
    scale: float


def to_peft(adapter: Adapter, config: GPTConfig, base: str) -> tuple[Arrays, dict[str, Any]]:
    """Return the tensors and the settings of PEFT for an adapter of a classic model.

    Args:
        adapter: the adapter.
        config: the shape of its model.
        base: the folder or the hub's name of the model in transformers' form.
    """
    lora, tensors = adapter.lora, Arrays()
    ends = {part: end for end, part in reversed(PEFT_PARTS.items())}
    for name, array in adapter.arrays.items():
        layer, part = name.rsplit(".", 1)
        tensor = mx.contiguous(array.T) if array.ndim == 2 else array
        tensors[f"{PEFT_PREFIX}{renamed(layer)}{ends[part]}"] = tensor
    alpha = lora.scale * lora.rank
    layers = [renamed(name) for name in adapted_layers(config, lora)]
    if lora.layers in (None, config.n_layer):  # the same in all layers: q_proj
        layers = [name.rpartition(".")[2] for name in layers]
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(dict.fromkeys(layers)),
        "use_dora": lora.dora,
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def from_peft(
    settings: Mapping[str, Any], tensors: Mapping[str, mx.array], config: GPTConfig
) -> Adapter:
    """Return an adapter that PEFT has trained, on nanochat's modules or on transformers'.

    Args:
        settings: the contents of its adapter_config.json.
        tensors: those of its adapter_model.safetensors.
        config: the shape of the model that it is for.

    Raises:
        CheckpointError: it computes something that adapters here do not, or does not fit the model.
            The setting, tensor or layer is named.
    """
    _require_known(settings)
    dora = _flag(settings, "use_dora")
    found = _grouped(_of_layers(tensors), PEFT_PARTS)
    layers = dict[str, _Adapted]()
    for layer, parts in found.items():
        A, B = _matrices(layer, parts)
        scale = _peft_scale(settings, layer, rank=A.shape[0])
        layers[layer] = _Adapted(A.T, B.T, parts.get("m"), scale)
    return _uniform(layers, _number(settings, "lora_dropout", 0.0), dora, config)


def from_mlx_lm(
    settings: Mapping[str, Any], tensors: Mapping[str, mx.array], config: GPTConfig
) -> Adapter:
    """Return an adapter that mlx-lm has trained.

    Args:
        settings: the contents of its adapter_config.json.
        tensors: those of its adapters.safetensors.
        config: the shape of the model that it is for.

    Raises:
        CheckpointError: as `from_peft`.
    """
    kind = settings.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise _refused(f"fine_tune_type is {kind!r}: it holds whole weights, not an adapter")
    numbers = settings.get("lora_parameters")
    if not isinstance(numbers, dict):
        raise _refused("it has no lora_parameters")
    scale = _number(numbers, "scale")
    layers = dict[str, _Adapted]()
    for layer, parts in _grouped(tensors, MLX_LM_PARTS).items():
        layers[layer] = _Adapted(*_matrices(layer, parts), parts.get("m"), scale)
    return _uniform(layers, _number(numbers, "dropout", 0.0), kind == "dora", config)


def require_same_effect(
    adapter: Adapter, settings: Mapping[str, Any], tensors: Mapping[str, mx.array]
) -> None:
    """Check on random numbers that an adapter adds what PEFT's formula makes of PEFT's tensors.

    A square matrix that was not transposed, or was twice, fits everywhere and computes something
    else. This is computed from the tensors as they are in the file.

    Raises:
        CheckpointError: they differ; the layer is named.
    """
    theirs = _grouped(_of_layers(tensors), PEFT_PARTS)
    random, lora, arrays = np.random.default_rng(0), adapter.lora, adapter.arrays
    for layer, parts in theirs.items():
        first, second = _matrices(layer, parts)
        A, B = np.array(first.astype(mx.float32)), np.array(second.astype(mx.float32))
        x = random.standard_normal((A.shape[1],)).astype(np.float32)  # (in,)
        expected = _peft_scale(settings, layer, len(A)) * (B @ (A @ x))  # (out,)
        a, b = arrays[f"{layer}.lora_a"], arrays[f"{layer}.lora_b"]
        added = lora.scale * np.array(mx.array(x) @ a @ b)
        if not np.allclose(added, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()):
            raise CheckpointError(
                f"The adapter of {layer} gives results that differ from PEFT's.",
                "This is a bug in mlxchat: please report it.",
            )


# ==== Layers ====


def copies_of_weights(tensors: Mapping[str, mx.array]) -> list[str]:
    """Return the names of the base model's own weights that PEFT has saved with an adapter.

    It does so where the head or the embedding is adapted. They are not read: the weights of the
    model count that the adapter is put on.
    """
    return [name for name in tensors if name.endswith(COPIED)]


def _of_layers(tensors: Mapping[str, mx.array]) -> Arrays:
    return {
        name.removeprefix(PEFT_PREFIX): tensor
        for name, tensor in tensors.items()
        if not name.endswith(COPIED)
    }


def _grouped(tensors: Mapping[str, mx.array], ends: Mapping[str, str]) -> dict[str, Arrays]:
    """Return the tensors of each layer by part, under nanochat's name of the layer.

    Args:
        tensors: by the name of the layer, in nanochat or in transformers, and an end.
        ends: the part that each end stands for.
    """
    layers = dict[str, Arrays]()
    for name, tensor in tensors.items():
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            raise _refused(f"{one_line(name, 99)} is not part of LoRA or DoRA")
        layer = plain_name(name.removesuffix(end))
        if not mx.issubdtype(tensor.dtype, mx.floating):
            raise _refused(f"{one_line(name, 99)} does not contain floating-point numbers")
        layers.setdefault(layer, {})[ends[end]] = tensor
    if not layers:
        raise _refused("it has no tensors")
    return layers


def _matrices(layer: str, parts: Mapping[str, mx.array]) -> tuple[mx.array, mx.array]:
    first, second = parts.get("lora_a"), parts.get("lora_b")
    if first is None or second is None or not first.ndim == second.ndim == 2 or not first.size:
        raise _refused(f"{one_line(layer, 99)} does not have two matrices")
    return first, second


def _uniform(
    layers: Mapping[str, _Adapted], dropout: float, dora: bool, config: GPTConfig
) -> Adapter:
    """Return one adapter of the same rank and scale in each layer that computes the same."""
    rank = max(adapted.a.shape[1] for adapted in layers.values())
    scale = max(adapted.scale for adapted in layers.values())
    lora = _config(layers, config, rank=rank, scale=scale, dropout=dropout, dora=dora)
    arrays = Arrays()
    for layer, (inputs, outputs) in adapted_layers(config, lora).items():
        adapted = layers.get(layer)
        if adapted is None:
            if dora:
                raise _refused(
                    f"it uses DoRA and lacks {layer}, although it adapts that part in other layers"
                )
            adapted = _Adapted(mx.zeros((inputs, rank)), mx.zeros((rank, outputs)), None, scale)
        _require_fits(layer, adapted, inputs, outputs, dora)
        missing = rank - adapted.a.shape[1]
        a, b = adapted.a.astype(mx.float32), adapted.b.astype(mx.float32)
        b = b if adapted.scale == scale else b * (adapted.scale / scale)
        arrays[f"{layer}.lora_a"] = mx.contiguous(mx.pad(a, [(0, 0), (0, missing)]))
        arrays[f"{layer}.lora_b"] = mx.contiguous(mx.pad(b, [(0, missing), (0, 0)]))
        if adapted.m is not None:
            arrays[f"{layer}.m"] = adapted.m.astype(mx.float32)
    for name, array in arrays.items():
        if not mx.isfinite(array).all().item():
            raise _refused(f"{name} has values that are infinite or NaN")
    return Adapter(lora, arrays)


def _config(layers: Iterable[str], config: GPTConfig, **numbers: Any) -> LoraConfig:
    """Return the settings of an adapter that changes these layers, and perhaps some more."""
    first, modules = config.n_layer, dict[str, None]()
    for layer in layers:
        if layer == HEAD:
            modules[HEAD] = None
            continue
        place = re.fullmatch(r"transformer\.h\.(\d{1,6})\.([\w.]{1,99})", layer)
        if place is None or int(place[1]) >= config.n_layer:
            raise _refused(
                f"it changes {one_line(layer, 99)}, which is neither the head nor a matrix of the "
                f"model's {counted(config.n_layer, 'layers')}"
            )
        first = min(first, int(place[1]))
        modules[place[2]] = None
    depth = config.n_layer - first if first < config.n_layer else 1  # the head alone
    try:
        lora = LoraConfig(layers=depth if first else None, **numbers)
        usual = set(map(module_of, adapted_layers(config, lora)))
        if modules.keys() != usual:
            lora = lora.model_copy(update={"modules": tuple(sorted(modules))})
        adapted_layers(config, lora)
    except ValidationError as error:
        raise _refused(in_words(error)) from error
    except ConfigError as error:
        raise _refused(error.problem.rstrip(".")) from error
    return lora


def _require_fits(layer: str, adapted: _Adapted, inputs: int, outputs: int, dora: bool) -> None:
    a, b, m = adapted.a, adapted.b, adapted.m
    if (a.shape[0], b.shape[1]) != (inputs, outputs) or a.shape[1] != b.shape[0]:
        raise _refused(
            f"its matrices for {layer} map {a.shape[0]} numbers to {a.shape[1]} and "
            f"{b.shape[0]} to {b.shape[1]}; the model's layer maps {inputs} to {outputs}"
        )
    if (m is not None) != dora or (m is not None and m.shape != (outputs,)):
        raise _refused(f"the lengths of the rows of {layer}, which DoRA learns, are not {outputs}")


# ==== Settings ====


def _require_known(settings: Mapping[str, Any]) -> None:
    """Refuse what PEFT would compute and this module does not."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise _refused(f"peft_type is {kind!a:.99}")
    if settings.get("bias", "none") not in ("none", None):
        raise _refused("it was trained with bias, which these models do not have")
    beginning = settings.get("init_lora_weights", True)
    if beginning not in _PLAIN_BEGINNINGS:
        raise _refused(
            f"init_lora_weights is {beginning!a:.99}, a method that changes the base model"
        )
    for name, value in settings.items():
        if name not in _READ | _WITHOUT_EFFECT and value not in (None, False, [], {}):
            raise _refused(f"{one_line(name, 50)} is {value!a:.99}")


def _peft_scale(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return the factor of what PEFT adds to a layer's output."""
    alpha = _number(settings, "lora_alpha", 8)
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _refused("alpha_pattern is not a table")
    for pattern in patterns:
        if not re.fullmatch(r"[\w.]+", pattern):
            raise _refused(f"alpha_pattern has {pattern!a:.99}, which is not a module's name")
        if any(f".{name}".endswith(f".{pattern}") for name in (layer, renamed(layer))):
            alpha = _number(patterns, pattern)
            break
    return alpha / (math.sqrt(rank) if _flag(settings, "use_rslora") else rank)


def _number(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refused(f"{one_line(name, 50)} is {value!a:.99}, which is not a number")
    return float(value)


def _flag(settings: Mapping[str, Any], name: str) -> bool:
    value = settings.get(name) or False
    if not isinstance(value, bool):
        raise _refused(f"{name} is {value!a:.99}, which is neither true nor false")
    return value


def _refused(reason: str) -> CheckpointError:
    return CheckpointError(f"The adapter cannot be used: {reason}.", _ANOTHER)
