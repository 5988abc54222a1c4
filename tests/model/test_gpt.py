"""Both architectures against nanochat's numbers, and decoding against the full forward pass."""

import math
from random import Random
from typing import Any

import pytest
from support.cases import Case, relative
from support.marks import slow

from mlxchat.engine.cache import KVCache
from mlxchat.model import gpt, loss
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.size import flops_per_token, parameters
from mlxchat.runtime import machine, mx, nn, tree_flatten


@pytest.fixture(params=[10_000, 20], ids=["whole", "in chunks"])
def _loss_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "chunk_size", lambda *_: request.param)


def test_logits_equal_nanochats(case: Case) -> None:
    assert mx.abs(case.model()(case.io["ids"]) - case.io["logits"]).max().item() < 1e-4


@pytest.mark.usefixtures("_loss_chunks")
def test_losses_equal_nanochats(case: Case) -> None:
    model = case.model()
    losses = model.losses(case.io["ids"], case.io["targets"])
    assert mx.abs(losses.reshape(-1) - case.io["loss_per_token"]).max().item() < 1e-4
    ignored = case.io["targets"] < 0
    assert ignored.any().item()
    assert (losses * ignored).sum().item() == 0
    assert case.loss(model).item() == pytest.approx(case.facts["loss"], abs=1e-4)


def test_the_mean_loss_of_many_positions_does_not_drift() -> None:
    """At the start of training all losses are equal, so that rounding always errs to one side."""
    x, head = mx.ones((8000, 2)), mx.zeros((265, 2))
    targets = mx.where(mx.arange(8000) % 9 == 0, -1, 7)
    mean = loss.mean_cross_entropy(x, head, targets, 265, 15.0, chunk_rows=128)
    assert mean.item() == pytest.approx(math.log(265), abs=6e-6)


@pytest.mark.usefixtures("_loss_chunks")
def test_gradients_equal_nanochats(case: Case) -> None:
    model = case.model()
    _, tree = nn.value_and_grad(model, case.loss)(model)
    gradients = dict(tree_flatten(tree))
    expected = case.load("grads")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert relative(gradient, expected[name]) < 1e-4, name


def test_parameters_and_flops_equal_nanochats(case: Case) -> None:
    count = case.facts["num_params"]
    assert sum(p.size for p in case.model().named_parameters().values()) == count
    assert sum(parameters(case.config).values()) == count
    assert flops_per_token(case.config) == case.facts["flops_per_token"]


def test_windows_equal_nanochats() -> None:
    case = Case("modern")
    assert [[window, 0] for window in case.config.windows] == case.facts["window_sizes"]
    assert case.io["ids"].shape[1] > 2 * min(
        case.config.windows
    )  # so that the tests above depend on them


@pytest.mark.parametrize("prompt", [0, 5, 128, 129, 200])  # the short windows are 128
@pytest.mark.parametrize("chunk", [slow(1), 3, 60, 150])
def test_decoding_in_pieces_equals_the_full_pass(case: Case, prompt: int, chunk: int) -> None:
    model, cache = case.model(), KVCache(case.config)
    ids, T = case.io["ids"], case.io["ids"].shape[1]
    prompt = min(prompt, T // 2)
    starts = [0, *range(prompt, T, chunk)] if prompt else range(0, T, chunk)
    ends = [*starts[1:], T]
    pieces = [model(ids[:, a:b], cache) for a, b in zip(starts, ends, strict=True)]
    assert mx.abs(mx.concatenate(pieces, axis=1) - case.io["logits"]).max().item() < 1e-4


@pytest.mark.parametrize("seed", [*range(4), *map(slow, range(4, 12))])
def test_reading_and_trimming_at_random_equals_the_full_pass(seed: int) -> None:
    case, random = Case("modern"), Random(seed)
    model, cache, ids = case.model(), KVCache(case.config), case.io["ids"][:1]
    for _ in range(40):
        start = cache.offset
        end = start + random.choice([1, 2, 100, 130])
        if end > ids.shape[1]:
            cache.trim(0)
            continue
        logits = model(ids[:, start:end], cache)
        assert mx.abs(logits - case.io["logits"][:1, start:end]).max().item() < 1e-4
        for back in random.choices([0, 1, 2, 100], k=2):  # the second trim follows the first
            cache.trim(max(0, cache.offset - back))


def test_bfloat16_is_close_and_stays_bfloat16(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[mx.Dtype]] = {}

    def record(owner: Any, name: str) -> None:
        called, dtypes = getattr(owner, name), seen.setdefault(name, set())

        def recorded(*positional: Any, **keywords: Any) -> Any:
            result = called(*positional, **keywords)
            arrays = (*positional, *keywords.values(), result)
            dtypes.update(array.dtype for array in arrays if isinstance(array, mx.array))
            return result

        monkeypatch.setattr(owner, name, recorded)

    half = case.model(mx.bfloat16)
    record(mx.fast, "scaled_dot_product_attention")
    record(gpt.Linear, "__call__")
    record(gpt, "norm")
    value, tree = nn.value_and_grad(half, case.loss)(half)
    assert half.features(case.io["ids"]).dtype == mx.bfloat16
    assert len(seen) == 3
    for function, dtypes in seen.items():
        assert dtypes == {mx.bfloat16}, function
    assert value.dtype == mx.float32
    assert {gradient.dtype for _, gradient in tree_flatten(tree)} == {mx.float32}
    assert value.item() == pytest.approx(case.facts["loss"], abs=1e-2)


def test_casting_the_matrices_once_changes_no_bit(case: Case) -> None:
    expected = case.model(mx.bfloat16)(case.io["ids"])
    model = case.model(mx.bfloat16)
    model.cast_matrices()
    assert model.lm_head.weight.dtype == mx.bfloat16
    assert mx.array_equal(model(case.io["ids"]), expected)


def test_preparing_for_inference_changes_no_logits(case: Case) -> None:
    model = case.model()
    model.prepare_for_inference()
    assert mx.allclose(model(case.io["ids"]), case.io["logits"], atol=1e-4)
    assert not any("c_k" in name for name in model.named_parameters())


def test_rows_beyond_the_vocabulary_change_no_logits(case: Case) -> None:
    padded = GPT(case.config.model_copy(update={"vocab_multiple": 64}))
    weights = dict(case.model().named_parameters())
    for name, weight in padded.named_parameters().items():
        if weight.shape != weights[name].shape:
            assert weight.shape[0] == 128
            noise = mx.random.normal(weight.shape, key=mx.random.key(0))
            weights[name] = mx.concatenate([weights[name], noise[97:]])
    padded.load_weights(list(weights.items()))
    assert mx.allclose(padded(case.io["ids"]), case.io["logits"], atol=1e-4)
    assert case.loss(padded).item() == pytest.approx(case.facts["loss"], abs=1e-4)
    assert sum(p.size for p in weights.values()) == sum(parameters(padded.config).values())


def test_short_windows_need_an_era_that_has_them() -> None:
    with pytest.raises(ValueError, match="no short windows"):
        GPTConfig(window_pattern="SL")


def test_a_new_model_depends_on_shape_and_seed_only() -> None:
    config = GPTConfig.from_depth(2, vocab_size=300, sequence_len=64)
    assert GPT.new(config).dtype == machine().compute_dtype
    weights, same, other = (GPT.new(config, seed).named_parameters() for seed in (0, 0, 1))
    assert {weight.dtype for weight in weights.values()} == {mx.float32}
    assert all(mx.array_equal(same[name], weight) for name, weight in weights.items())
    drawn = [name for name, weight in weights.items() if weight.any()]
    assert drawn
    assert not any(mx.array_equal(other[name], weights[name]) for name in drawn)


def deviation(weight: mx.array) -> float:
    return float(weight.square().mean().sqrt().item())


def test_initial_parameters_of_the_classic_network_are_nanochats() -> None:
    model = GPT.new(GPTConfig.from_depth(2, 300, 64), seed=1)
    weights = model.named_parameters()
    for name, weight in weights.items():
        if name == "lm_head.weight" or name.endswith("c_proj.weight"):
            assert deviation(weight) == 0
        elif name == "transformer.wte.weight":
            assert deviation(weight) == pytest.approx(1, rel=0.02)
        else:  # 128 x 128 and 512 x 128 alike
            assert deviation(weight) == pytest.approx(128**-0.5, rel=0.03)


def test_initial_parameters_of_the_modern_network_are_nanochats() -> None:
    model = GPT.new(GPTConfig.from_depth(4, 320, 64, arch="modern"), seed=1)
    weights = model.named_parameters()
    expected = {
        "transformer.wte.weight": 0.8,
        "lm_head.weight": 0.001,
        "transformer.h.1.attn.c_q.weight": 256**-0.5,
        "transformer.h.2.attn.c_v.weight": 256**-0.5,
        "transformer.h.3.mlp.c_fc.weight": 0.4 * 256**-0.5,
        "transformer.h.3.mlp.c_proj.weight": 0,
        "transformer.h.0.attn.c_proj.weight": 0,
        "value_embeds.1.weight": 256**-0.5,
        "value_embeds.3.weight": 256**-0.5,
    }
    for name, value in expected.items():
        assert deviation(weights[name]) == pytest.approx(value, rel=0.03), name
    bound = 3**0.5 * 256**-0.5
    assert mx.abs(weights["value_embeds.3.weight"]).max().item() == pytest.approx(bound, rel=0.01)
    for gate in ("transformer.h.3.attn.ve_gate.weight", "smear_gate.weight"):
        assert 0 <= weights[gate].min().item() < weights[gate].max().item() <= 0.02
    assert mx.allclose(
        weights["resid_lambdas"], mx.array([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05])
    )
    assert mx.allclose(weights["x0_lambdas"], mx.array([0.2, 0.15, 0.1, 0.05]))
    assert weights["smear_lambda"].tolist() == [0]
    assert weights["backout_lambda"].item() == pytest.approx(0.2)
    assert "value_embeds.0.weight" not in weights
