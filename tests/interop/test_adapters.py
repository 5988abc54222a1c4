"""Adapters in PEFT's form and mlx-lm's: names, shapes, scales, and what is refused."""

from typing import Any

import numpy as np
import pytest

from mlxchat.errors import CheckpointError
from mlxchat.interop.adapters import (
    PEFT_PREFIX,
    Adapter,
    from_mlx_lm,
    from_peft,
    require_same_effect,
    to_peft,
)
from mlxchat.model.adapter import LoraConfig, adapted_layers, adapter_shapes
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx

CONFIG = GPTConfig(
    arch="classic", era="classic", sequence_len=16, vocab_size=32, n_layer=3, n_head=2,
    n_kv_head=1, n_embd=16, window_pattern="L", vocab_multiple=1,
)  # fmt: skip
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
QUERY = "model.layers.2.self_attn.q_proj"
HEAD = {"layers": 1, "modules": ("attn.c_q", "lm_head")}
Tensors = dict[str, mx.array]


def adapter(seed: int = 0, **settings: Any) -> Adapter:
    """An adapter of random numbers."""
    lora = LoraConfig(**{"rank": 4, **settings})
    shapes = adapter_shapes(CONFIG, lora)
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    drawn = zip(shapes.items(), keys, strict=True)
    return Adapter(lora, {name: mx.random.normal(s, key=key) for (name, s), key in drawn})


def by_peft(layer: str = QUERY, rank: int = 4, inputs: int = 16, outputs: int = 16) -> Tensors:
    """The tensors of one layer as PEFT stores them."""
    first, second = mx.random.split(mx.random.key(len(layer)))
    return {
        f"{PEFT_PREFIX}{layer}.lora_A.weight": mx.random.normal((rank, inputs), key=first),
        f"{PEFT_PREFIX}{layer}.lora_B.weight": mx.random.normal((outputs, rank), key=second),
    }


def added(found: Adapter, layer: str, x: np.ndarray) -> np.ndarray:
    """What an adapter adds to a layer's output, by mlx-lm's formula."""
    a, b = (np.array(found.arrays[f"{layer}.{part}"]) for part in ("lora_a", "lora_b"))
    return found.lora.scale * ((x @ a) @ b)


def added_by_peft(tensors: Tensors, layer: str, x: np.ndarray, scale: float) -> np.ndarray:
    """What PEFT adds, by hand."""
    A, B = (np.array(tensors[f"{PEFT_PREFIX}{layer}.lora_{part}.weight"]) for part in "AB")
    return scale * (B @ (A @ x))


X = np.random.default_rng(1).standard_normal(64).astype(np.float32)


@pytest.mark.parametrize(
    "kind", [{}, {"dora": True}, {"layers": 2}, {"modules": ("mlp.c_fc",)}, HEAD]
)
def test_an_adapter_becomes_peft_s_and_comes_back(kind: Any) -> None:
    ours = adapter(**kind)
    tensors, settings = to_peft(ours, CONFIG, "base")
    back = from_peft(settings, tensors, CONFIG)
    assert back.lora == ours.lora.model_copy(update={"layers": kind.get("layers")})
    assert back.arrays.keys() == ours.arrays.keys()
    assert all(mx.array_equal(back.arrays[name], array) for name, array in ours.arrays.items())
    require_same_effect(ours, settings, tensors)


def test_peft_computes_from_our_tensors_what_we_do() -> None:
    ours = adapter(scale=3.0)
    tensors, settings = to_peft(ours, CONFIG, "base")
    assert settings["lora_alpha"] / settings["r"] == 3.0
    assert set(settings["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
    }
    for theirs, layer in (
        (QUERY, "transformer.h.2.attn.c_q"),  # square
        ("model.layers.0.self_attn.v_proj", "transformer.h.0.attn.c_v"),
        ("model.layers.1.mlp.fc1", "transformer.h.1.mlp.c_fc"),
        ("model.layers.1.mlp.fc2", "transformer.h.1.mlp.c_proj"),
    ):
        x = X[: ours.arrays[f"{layer}.lora_a"].shape[0]]
        expected = added_by_peft(tensors, theirs, x, 3.0)
        assert np.allclose(added(ours, layer, x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "scale"),
    [({}, 2.0), ({"use_rslora": True}, 4.0), ({"lora_alpha": 3}, 0.75)],
)
def test_we_compute_from_peft_s_tensors_what_it_does(more: Any, scale: float) -> None:
    tensors = by_peft()
    found = from_peft({**SETTINGS, **more}, tensors, CONFIG)
    assert found.lora == LoraConfig(rank=4, scale=scale, layers=1, modules=("attn.c_q",))
    expected = added_by_peft(tensors, QUERY, X[:16], scale)
    assert np.allclose(added(found, "transformer.h.2.attn.c_q", X[:16]), expected, rtol=1e-5)


def test_nanochat_s_own_names_are_understood() -> None:
    found = from_peft(SETTINGS, by_peft("transformer.h.2.mlp.c_fc", outputs=64), CONFIG)
    assert list(adapted_layers(CONFIG, found.lora)) == ["transformer.h.2.mlp.c_fc"]


def test_ranks_and_scales_that_differ_are_made_equal() -> None:
    other = "model.layers.0.self_attn.v_proj"
    tensors = by_peft() | by_peft(other, rank=2, outputs=8)
    patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"self_attn.v_proj": 1}}
    found = from_peft({**SETTINGS, **patterns}, tensors, CONFIG)
    assert (found.lora.rank, found.lora.scale, found.lora.layers) == (4, 2.0, None)
    for theirs, layer, scale in (
        (QUERY, "transformer.h.2.attn.c_q", 2.0),
        (other, "transformer.h.0.attn.c_v", 0.5),
    ):
        expected = added_by_peft(tensors, theirs, X[:16], scale)
        assert np.allclose(added(found, layer, X[:16]), expected, rtol=1e-5)
    assert not added(found, "transformer.h.1.attn.c_v", X[:16]).any()  # not adapted there


def test_a_matrix_that_is_not_transposed_is_noticed() -> None:
    ours = adapter(rank=16, modules=("attn.c_q",))  # all square
    tensors, settings = to_peft(ours, CONFIG, "base")
    name = "transformer.h.1.attn.c_q.lora_a"
    wrong = ours._replace(arrays={**ours.arrays, name: ours.arrays[name].T})
    with pytest.raises(CheckpointError, match=r"h\.1\.attn\.c_q gives results that differ"):
        require_same_effect(wrong, settings, tensors)


def test_mlx_lm_s_adapters_are_ours() -> None:
    ours = adapter(scale=5.0, dropout=0.1, layers=2)
    numbers = {"rank": 4, "scale": 5.0, "dropout": 0.1}
    found = from_mlx_lm({"lora_parameters": numbers}, ours.arrays, CONFIG)
    assert found.lora == ours.lora
    assert all(mx.array_equal(found.arrays[name], array) for name, array in ours.arrays.items())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"use_something_new": True}, "use_something_new"),
        ({"alpha_pattern": {"^.*q_proj$": 4}}, "alpha_pattern"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": 0}, "greater than 0"),
        ({"use_dora": True}, "lengths of the rows"),
    ],
)
def test_what_would_compute_something_else_is_refused(settings: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        from_peft({**SETTINGS, **settings}, by_peft(), CONFIG)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({}, "no tensors"),
        (by_peft("model.embed_tokens"), "it changes model.embed_tokens"),
        (by_peft("model.layers.3.mlp.fc1"), r"transformer\.h\.3\.mlp\.c_fc"),
        (by_peft("model.layers.0.mlp.gate"), r"mlp\.gate"),
        (by_peft(inputs=8), "map 8 numbers to 4"),
        ({f"{PEFT_PREFIX}{QUERY}.lora_E": mx.ones(4)}, "not part of LoRA"),
        ({f"{PEFT_PREFIX}{QUERY}.lora_A.weight": mx.ones((4, 16))}, "not have two matrices"),
        ({name: tensor * mx.nan for name, tensor in by_peft().items()}, "infinite or NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: Tensors, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        from_peft(SETTINGS, tensors, CONFIG)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type"),
        ({}, "lora_parameters"),
        ({"lora_parameters": {"rank": 4, "alpha": 8}}, "scale"),
    ],
)
def test_an_mlx_lm_adapter_that_is_none_is_refused(settings: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        from_mlx_lm(settings, adapter().arrays, CONFIG)
