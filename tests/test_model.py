"""The classic architecture against nanochat's own numbers, and its decoding against itself."""

from collections.abc import Iterator

import pytest
from conftest import GOLDEN, golden

from mlxchat.engine.cache import make_cache
from mlxchat.model import gpt
from mlxchat.model.arithmetic import flops_per_token, parameters
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT, initialise
from mlxchat.optim.groups import MuonAdamW, Rates, clip
from mlxchat.optim.schedule import learning_rate_multiplier, muon_momentum, width_scale
from mlxchat.runtime import mx, nn, tree_flatten

CASE = golden("classic/case.json")
FOLDER = GOLDEN / "classic"


@pytest.fixture
def model() -> GPT:
    made = GPT(GPTConfig(**CASE["config"]))
    made.load_weights(list(mx.load(str(FOLDER / "weights.safetensors")).items()))
    return made


@pytest.fixture(scope="module")
def io() -> dict[str, mx.array]:
    return mx.load(str(FOLDER / "io.safetensors"))


@pytest.fixture(params=[gpt.LOGITS_LIMIT, 97 * 20], ids=["whole", "in chunks"])
def _loss_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "LOGITS_LIMIT", request.param)


def mean_loss(model: GPT, io: dict[str, mx.array]) -> mx.array:
    return model.losses(io["ids"], io["targets"]).sum() / (io["targets"] >= 0).sum()


def relative(a: mx.array, b: mx.array) -> float:
    return float(mx.linalg.norm(a - b).item() / mx.linalg.norm(b).item())


def test_logits(model: GPT, io: dict[str, mx.array]) -> None:
    assert mx.abs(model(io["ids"]) - io["logits"]).max().item() < 1e-4


@pytest.mark.usefixtures("_loss_chunks")
def test_losses(model: GPT, io: dict[str, mx.array]) -> None:
    losses = model.losses(io["ids"], io["targets"])
    assert mx.abs(losses.reshape(-1) - io["loss_per_token"]).max().item() < 1e-4
    ignored = io["targets"] < 0
    assert ignored.any().item()
    assert (losses * ignored).sum().item() == 0
    assert mean_loss(model, io).item() == pytest.approx(CASE["loss"], abs=1e-4)


@pytest.mark.usefixtures("_loss_chunks")
def test_gradients(model: GPT, io: dict[str, mx.array]) -> None:
    _, tree = nn.value_and_grad(model, lambda m: mean_loss(m, io))(model)
    gradients = dict(tree_flatten(tree))
    expected = mx.load(str(FOLDER / "grads.safetensors"))
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert relative(gradient, expected[name]) < 1e-4, name


def test_three_optimizer_steps(model: GPT, io: dict[str, mx.array]) -> None:
    optimizer = MuonAdamW(model.named_parameters(), 0.0, mx.float32)
    scale = width_scale(CASE["config"]["n_embd"])
    rates = Rates(*map(mx.array, (0.2 * scale, 0.004 * scale, 0.02, 0.95)))
    state = optimizer.state
    loss_and_gradients = nn.value_and_grad(model, lambda m: mean_loss(m, io))
    for expected in CASE["train_losses"]:
        loss, tree = loss_and_gradients(model)
        assert loss.item() == pytest.approx(expected, abs=1e-4)
        new, state = optimizer.update(
            model.named_parameters(), dict(tree_flatten(tree)), state, rates
        )
        model.load_weights(list(new.items()))
    assert mean_loss(model, io).item() == pytest.approx(CASE["loss_after_3_steps"], abs=1e-4)
    for name, expected in mx.load(str(FOLDER / "weights_after_3_steps.safetensors")).items():
        assert relative(model.named_parameters()[name], expected) < 1e-3, name


def test_counts(model: GPT) -> None:
    assert sum(p.size for p in model.named_parameters().values()) == CASE["num_params"]
    assert sum(parameters(model.config).values()) == CASE["num_params"]
    assert flops_per_token(model.config) == CASE["flops_per_token"]


@pytest.mark.parametrize("chunk", [1, 7, 48])
def test_decoding_in_pieces_is_the_full_pass(
    model: GPT, io: dict[str, mx.array], chunk: int
) -> None:
    cache = make_cache(model)
    T = io["ids"].shape[1]
    pieces = [model(io["ids"][:, i : i + chunk], cache) for i in range(0, T, chunk)]
    assert mx.abs(mx.concatenate(pieces, axis=1) - io["logits"]).max().item() < 1e-4


def test_bfloat16_is_close_and_stays_bfloat16(model: GPT, io: dict[str, mx.array]) -> None:
    half = GPT(model.config, mx.bfloat16)
    half.load_weights(list(model.named_parameters().items()))
    assert half.features(io["ids"]).dtype == mx.bfloat16
    assert mean_loss(half, io).item() == pytest.approx(CASE["loss"], abs=2e-2)


def test_initial_parameters() -> None:
    model = GPT(GPTConfig.from_depth(2, 300, 64))
    initialise(model, mx.random.key(1))
    weights = model.named_parameters()
    for name, weight in weights.items():
        std = weight.square().mean().sqrt().item()
        if name == "lm_head.weight" or name.endswith("c_proj.weight"):
            assert std == 0
        elif name == "transformer.wte.weight":
            assert std == pytest.approx(1, rel=0.02)
        else:  # 128 x 128 and 512 x 128 alike
            assert std == pytest.approx(128**-0.5, rel=0.03)
    again = GPT(model.config)
    initialise(again, mx.random.key(1))
    assert all(mx.array_equal(again.named_parameters()[n], w) for n, w in weights.items())


def test_clipping_is_joint() -> None:
    gradients = {"a": mx.array([3.0]), "b": mx.array([[4.0]])}
    clipped, norm = clip(gradients, 1.0)
    assert norm.item() == 5
    assert clipped["a"].item() == pytest.approx(0.6)
    assert clip(gradients, 10.0)[0]["b"].item() == 4
    assert clip(gradients, 0.0)[0] is gradients


def steps(total: int) -> Iterator[float]:
    return (learning_rate_multiplier(i, total, 0.1, 0.2, 0.05) for i in range(total))


def test_schedules() -> None:
    multipliers = list(steps(100))
    assert multipliers[:2] == [0.1, 0.2]
    assert multipliers[10:81] == [1.0] * 71
    assert multipliers[90] == pytest.approx(0.5 + 0.5 * 0.05)
    assert multipliers[99] == pytest.approx(0.05 + 0.95 * 0.05)
    assert [muon_momentum(i) for i in (0, 150, 300, 9999)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
