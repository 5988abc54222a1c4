"""Adapters: put on, trained alone, read back, fused and taken off."""

from collections.abc import Callable

import numpy as np
import pytest
from support.models import network

from mlxchat.errors import CheckpointError, ConfigError
from mlxchat.model.adapter import LoraConfig, adapter_parameters, adapter_shapes
from mlxchat.model.backward import ordered_loss
from mlxchat.model.config import Architecture
from mlxchat.model.dropout import NO_DROPOUT, Dropout
from mlxchat.model.gpt import GPT, Arrays
from mlxchat.model.lora import (
    adapter_arrays,
    add_adapter,
    copied,
    fuse_adapter,
    load_adapter,
    plain_weights,
)
from mlxchat.model.lora_linear import LoraLinear
from mlxchat.model.quantization import Format, quantizable
from mlxchat.model.quantized import formats_of, quantize_layers
from mlxchat.runtime import mx

IDS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
TARGETS = mx.array([[1, 4, 1, 5, 9, 2, -1, 5, 3, 5, 8, -1]])


def assert_close(found: mx.array, expected: object, bound: float) -> None:
    expected = np.array(expected)
    error = np.abs(np.array(found) - expected).max() / np.abs(expected).max()
    assert error < bound, error


KINDS = {"lora": LoraConfig(rank=4), "dora": LoraConfig(rank=4, dora=True)}


@pytest.fixture(params=["classic", "modern"])
def arch(request: pytest.FixtureRequest) -> Architecture:
    chosen: Architecture = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["whole", "quantized"])
def base(arch: Architecture, request: pytest.FixtureRequest) -> GPT:
    model = network(arch=arch).model
    if request.param:
        quantize(model)
    return model


def quantize(model: GPT) -> None:
    """Quantize what can be: a value embedding of the modern model is too narrow."""
    layers = [layer.name for layer in quantizable(model.config) if layer.width % 32 == 0]
    quantize_layers(model, dict.fromkeys(layers, Format(group_size=32, bits=8)))


@pytest.fixture(params=KINDS)
def lora(request: pytest.FixtureRequest) -> LoraConfig:
    return KINDS[request.param]


def trained(model: GPT, lora: LoraConfig) -> Arrays:
    """Put an adapter on a model that says something, and return its arrays."""
    add_adapter(model, lora)
    arrays = {
        name: array + 0.02 * mx.random.normal(array.shape, key=mx.random.key(i))
        for i, (name, array) in enumerate(adapter_arrays(model).items())
    }
    model.load_weights(list(arrays.items()), strict=False)
    return arrays


def test_a_new_adapter_changes_nothing(base: GPT) -> None:
    before = base(IDS)
    add_adapter(base, KINDS["lora"])
    assert mx.array_equal(base(IDS), before)


def test_with_adapter_equals_fused_and_the_base_is_unchanged(base: GPT, lora: LoraConfig) -> None:
    before, adapted = base(IDS), copied(base)
    trained(adapted, lora)
    on = adapted(IDS)
    assert mx.abs(on - before).max() > 1e-2
    assert mx.array_equal(base(IDS), before)
    assert base.adapter is None
    fuse_adapter(adapted)
    assert adapted.adapter is None and not formats_of(adapted)
    assert_close(adapted(IDS), on, 1e-5)


def test_plain_weights_compute_the_same_and_leave_the_model_as_it_is(
    base: GPT, lora: LoraConfig
) -> None:
    before = formats_of(base)
    arrays = trained(base, lora)
    plain = GPT(base.config, base.dtype)
    plain.load_weights(list(plain_weights(base).items()))
    assert_close(plain(IDS), base(IDS), 1e-5)
    assert formats_of(base) == before and adapter_arrays(base).keys() == arrays.keys()


def test_a_quantized_model_may_stay_quantized(lora: LoraConfig) -> None:
    model = network().model
    quantize(model)
    before = formats_of(model)
    trained(model, lora)
    assert formats_of(model) == before
    on = model(IDS)
    fuse_adapter(model, dequantize=False)
    assert formats_of(model) == before
    assert 0 < mx.abs(model(IDS) - on).max() < 1


def test_an_adapter_is_read_back(base: GPT, lora: LoraConfig) -> None:
    adapted = copied(base)
    arrays = trained(adapted, lora)
    on = adapted(IDS)
    assert {n: a.shape for n, a in arrays.items()} == adapter_shapes(base.config, lora)
    assert sum(a.size for a in arrays.values()) == adapter_parameters(base.config, lora)
    load_adapter(base, lora, arrays)
    assert mx.array_equal(base(IDS), on)


def test_names_and_shapes_must_fit() -> None:
    model = network().model
    arrays = trained(copied(model), KINDS["lora"])
    name = "transformer.h.1.mlp.c_fc.lora_a"
    wrong = {**arrays, name: arrays[name].T, "transformer.h.7.attn.c_q.lora_a": mx.zeros((32, 4))}
    wrong.pop("transformer.h.0.attn.c_v.lora_b")
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, KINDS["lora"], wrong)
    assert "transformer.h.0.attn.c_v.lora_b is missing" in caught.value.problem
    assert "transformer.h.7.attn.c_q.lora_a is unknown" in caught.value.problem
    assert f"{name} has shape (4, 32), not (32, 4)" in caught.value.problem
    assert model.adapter is None


@pytest.mark.parametrize("wrong", [{"modules": "attn.c_x"}, {"layers": 3}])
def test_an_adapter_of_nothing_is_refused(wrong: dict[str, object]) -> None:
    model = network().model
    with pytest.raises(ConfigError, match=r"attn\.c_x|3"):
        add_adapter(model, LoraConfig.model_validate(wrong))
    assert model.named_trainable().keys() == model.named_parameters().keys()


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ((), "is empty, or contains an empty name"),
        ("", "is empty, or contains an empty name"),
        ("attn.c_q,", "is empty, or contains an empty name"),
        ("attn.c_q, attn.c_q", "twice"),
    ],
)
def test_modules_are_named_once(modules: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"`modules` .*{problem}"):
        LoraConfig.model_validate({"modules": modules})


# ==== Gradients ====


def gradients(model: GPT, checkpoint: bool = False, dropout: Dropout = NO_DROPOUT) -> Arrays:
    def loss(parameters: Arrays) -> mx.array:
        with model.using(parameters):
            return ordered_loss(model, IDS, TARGETS, 4, checkpoint=checkpoint, dropout=dropout)

    found: Arrays = mx.grad(loss)(model.named_trainable())
    return found


def test_only_the_adapter_has_gradients(base: GPT, lora: LoraConfig) -> None:
    arrays = trained(base, lora)
    assert gradients(base).keys() == arrays.keys()


def test_gradients_follow_from_those_of_the_weights(arch: Architecture) -> None:
    """With W = V + scale (a b)^T: d a = scale dW^T b^T, d b = scale a^T dW^T."""
    model, lora = network(arch=arch).model, KINDS["lora"]
    arrays = trained(model, lora)
    found = gradients(model)
    fuse_adapter(model)
    of_weights = gradients(model)
    for name in (name.removesuffix(".lora_a") for name in arrays if name.endswith("lora_a")):
        a, b = (np.array(arrays[f"{name}.{which}"]) for which in ("lora_a", "lora_b"))
        dw = np.array(of_weights[f"{name}.weight"])
        assert_close(found[f"{name}.lora_a"], lora.scale * dw.T @ b.T, 1e-4)
        assert_close(found[f"{name}.lora_b"], lora.scale * a.T @ dw.T, 1e-4)


def test_gradients_of_dora_are_those_of_its_formula() -> None:
    """By differences, with the lengths of the rows held as they are."""
    model = network().model
    trained(model, KINDS["dora"])
    layer = model.transformer["h"][0]["attn"]["c_q"]
    x, seen = mx.random.normal((5, 32)), mx.random.normal((5, 32))

    def value(m: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        y = np.array(x) @ (w + layer.scale * (a @ b).T).T
        return float((y * m / lengths * np.array(seen)).sum())

    w = np.array(layer.linear.weight, np.float64)
    own = [np.array(layer[name], np.float64) for name in ("m", "lora_a", "lora_b")]
    lengths = np.linalg.norm(w + layer.scale * (own[1] @ own[2]).T, axis=1)

    def loss(parameters: Arrays) -> mx.array:
        layer.update(parameters)
        return (layer(x) * seen).sum()

    found = mx.grad(loss)({name: layer[name] for name in ("m", "lora_a", "lora_b")})
    for which, name in enumerate(("m", "lora_a", "lora_b")):
        place = (3,) * own[which].ndim
        values = []
        for by in (1e-4, -1e-4):
            moved = [array.copy() for array in own]
            moved[which][place] += by
            values.append(value(*moved))
        assert found[name][place].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(base: GPT, lora: LoraConfig, rate: float) -> None:
    trained(base, lora)
    dropout = Dropout(rate, mx.random.key(7)) if rate else NO_DROPOUT
    held, again = gradients(base, dropout=dropout), gradients(base, True, dropout)
    assert all(mx.array_equal(held[name], again[name]) for name in held)


def test_dropout_is_of_what_the_adapter_reads() -> None:
    model = network().model
    before, new = model.loss(IDS, TARGETS), copied(model)
    add_adapter(new, KINDS["lora"])  # adds nothing yet
    drop = [Dropout(0.5, mx.random.key(seed)) for seed in (1, 1, 2)]
    assert new.loss(IDS, TARGETS, dropout=drop[0]).item() == before.item()
    trained(model, KINDS["lora"])
    first, same, other = (model.loss(IDS, TARGETS, dropout=each).item() for each in drop)
    assert first == same
    assert len({first, other, model.loss(IDS, TARGETS).item()}) == 3


def test_layers_below_the_adapted_ones_stay_as_they_are() -> None:
    model = network().model
    trained(model, LoraConfig(layers=1, modules=("attn.c_v", "mlp.c_proj")))
    assert sorted(name.split(".lora")[0] for name in adapter_arrays(model))[::2] == [
        "transformer.h.1.attn.c_v",
        "transformer.h.1.mlp.c_proj",
    ]
    for checkpoint in (False, True):
        assert all(mx.abs(g).max() > 0 for g in gradients(model, checkpoint).values())


# ==== Inference ====

CHANGES: dict[str, Callable[[], LoraConfig]] = {
    "all": lambda: LoraConfig(rank=4),
    "some": lambda: LoraConfig(rank=4, modules=("attn.c_q", "attn.c_v")),
    "dora": lambda: LoraConfig(rank=4, modules=("attn.c_v",), dora=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_prepared_for_inference_it_computes_the_same(base: GPT, change: str) -> None:
    trained(base, CHANGES[change]())
    on = base(IDS)
    base.prepare_for_inference()
    assert isinstance(base.transformer["h"][0].attn.c_qkv, LoraLinear)
    assert_close(base(IDS), on, 1e-5)
