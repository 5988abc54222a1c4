"""The optimizers against nanochat's own numbers, and the schedules by hand."""

import numpy as np
import pytest
from support.cases import Case, relative

from mlxchat.model.gpt import GPT
from mlxchat.optim import muon
from mlxchat.optim.optimizer import GROUPS, MATRIX, MuonAdamW, Rates, clip, group_of
from mlxchat.optim.schedule import (
    learning_rate_multiplier,
    muon_momentum,
    weight_decay_multiplier,
    width_scale,
)
from mlxchat.runtime import mx, nn, tree_flatten

LEARNING = {
    "classic": {"embedding": 0.2, "unembedding": 0.004, "matrix": 0.02},
    "modern": {
        "embedding": 0.3,
        "unembedding": 0.008,
        "value_embeds": 0.15,
        "matrix": 0.02,
        "resid": 0.005,
        "x0": 0.5,
        "smear": 0.2,
    },
}
SCALED_BY_WIDTH = {"embedding", "unembedding", "value_embeds"}


def golden_rates(case: Case) -> Rates:
    scale = width_scale(case.config.n_embd)
    learning = {
        group: mx.array(rate * (scale if group in SCALED_BY_WIDTH else 1))
        for group, rate in LEARNING[case.config.arch].items()
    }
    weight_decay = 0.0 if case.config.arch == "classic" else 0.1
    return Rates(learning, mx.array(0.95), mx.array(weight_decay))


def test_three_steps_equal_nanochats(case: Case) -> None:
    model = case.model()
    optimizer = MuonAdamW(model.named_parameters(), case.config.arch, mx.float32)
    rates, state = golden_rates(case), optimizer.state
    loss_and_gradients = nn.value_and_grad(model, case.loss)
    for expected in case.facts["train_losses"]:
        loss, tree = loss_and_gradients(model)
        assert loss.item() == pytest.approx(expected, abs=1e-4)
        new, state = optimizer.update(
            model.named_parameters(), dict(tree_flatten(tree)), state, rates
        )
        model.load_weights(list(new.items()))
    assert case.loss(model).item() == pytest.approx(case.facts["loss_after_3_steps"], abs=1e-4)
    for name, expected in case.load("weights_after_3_steps").items():
        assert relative(model.named_parameters()[name], expected) < 1e-3, name


def test_every_parameter_has_a_group_with_numbers(case: Case) -> None:
    groups = {group_of(name) for name in GPT(case.config).named_parameters()}
    assert groups == {MATRIX, *GROUPS[case.config.arch]} == set(LEARNING[case.config.arch])
    with pytest.raises(KeyError):
        group_of("transformer.wpe.weight")


def test_the_state_keeps_its_names_and_shapes(case: Case) -> None:
    model = case.model()
    optimizer = MuonAdamW(model.named_parameters(), case.config.arch, mx.float32)
    parameters = model.named_parameters()
    _, state = optimizer.update(parameters, parameters, optimizer.state, golden_rates(case))
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in optimizer.state.items()
    }


@pytest.mark.parametrize("shape", [(8, 8), (24, 6), (6, 24)])
def test_polar_express_makes_singular_values_one(shape: tuple[int, int]) -> None:
    G = mx.random.normal((3, *shape), key=mx.random.key(0))
    values = np.linalg.svd(np.array(muon.polar_express(G)), compute_uv=False)
    assert values.min() > 0.8
    assert values.max() < 1.2


def test_equalised_rows_keep_the_norm_of_the_matrix() -> None:
    G = mx.random.normal((2, 5, 7), key=mx.random.key(0))
    rows = mx.linalg.norm(muon.equalise_rows(G), axis=-1)  # (2, 5)
    expected = mx.linalg.norm(G, axis=[-2, -1]) / 5**0.5
    assert mx.allclose(rows, mx.broadcast_to(expected[:, None], (2, 5)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_neurons_are_evened_out_and_the_norm_stays(shape: tuple[int, int]) -> None:
    g = mx.random.normal((1, *shape), key=mx.random.key(0))
    second = muon.second_moment(g[0])[None]
    assert second.size == max(shape)
    evened, after = muon.normalise_neurons(g, second)
    assert mx.linalg.norm(evened).item() == pytest.approx(mx.linalg.norm(g).item(), rel=1e-5)
    axis = 2 if shape[0] > shape[1] else 1
    sizes = mx.linalg.norm(evened, axis=axis)  # the first time, all alike
    assert mx.allclose(sizes, sizes.mean(), rtol=1e-5)
    assert mx.allclose(after, 0.1 * g.square().mean(axis=axis, keepdims=True), rtol=1e-5)


def test_decay_is_cautious() -> None:
    p = mx.array([[1.0, -1.0], [1.0, 1.0]])
    g = mx.array([[1.0, 1.0], [1.0, -1.0]])  # orthogonal already
    buffers, seconds = [mx.zeros_like(p)], [muon.second_moment(p)]
    lr, momentum = mx.array(0.1), mx.array(0.0)
    decays = [
        muon.normuon_update([p], [g], buffers, seconds, lr, momentum, mx.array(decay), mx.float32)[
            0
        ][0]
        for decay in (0.0, 0.5)
    ]
    assert mx.allclose(decays[0] - decays[1], mx.array([[0.05, 0.0], [0.05, 0.0]]), atol=1e-6)


def test_clipping_is_joint() -> None:
    gradients = {"a": mx.array([3.0]), "b": mx.array([[4.0]])}
    clipped, norm = clip(gradients, 1.0)
    assert norm.item() == 5
    assert clipped["a"].item() == pytest.approx(0.6)
    assert clip(gradients, 10.0)[0]["b"].item() == 4
    assert clip(gradients, 0.0)[0] is gradients


def test_the_learning_rate_warms_up_and_down() -> None:
    multipliers = [learning_rate_multiplier(i, 100, 10, 0.2, 0.05) for i in range(100)]
    assert multipliers[:2] == [0.1, 0.2]
    assert multipliers[10:81] == [1.0] * 71
    assert multipliers[90] == pytest.approx(0.5 + 0.5 * 0.05)
    assert multipliers[99] == pytest.approx(0.05 + 0.95 * 0.05)


def test_muons_momentum_equals_nanochats() -> None:
    classic = [muon_momentum("classic", i, 1000, 0.2) for i in (0, 150, 300, 999)]
    assert classic == pytest.approx([0.85, 0.9, 0.95, 0.95])
    modern = [muon_momentum("modern", i, 2000, 0.65) for i in (0, 200, 400, 699, 700, 1350, 2000)]
    assert modern == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.97, 0.935, 0.9])
    short = muon_momentum("modern", 300, 500, 0.65)  # where both would hold, the warm-up does
    assert short == pytest.approx(0.85 + 0.12 * 0.75)


def test_modern_weight_decay_falls_to_zero() -> None:
    assert weight_decay_multiplier("classic", 99, 100) == 1
    falling = [weight_decay_multiplier("modern", i, 100) for i in (0, 50, 100)]
    assert falling == pytest.approx([1, 0.5, 0], abs=1e-12)
