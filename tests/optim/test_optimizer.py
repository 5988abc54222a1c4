"""The optimizers compared with nanochat's own numbers, and the schedules with hand-made ones."""

from itertools import repeat

import numpy as np
import pytest
from support.cases import Case, relative

from mlxchat.config.recipes import RECIPES
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.gpt import GPT
from mlxchat.model.loss import CHUNK_ROWS
from mlxchat.optim import muon
from mlxchat.optim.optimizer import PARAM_GROUPS, MuonAdamW, Rates, clip, group_of
from mlxchat.optim.rule import Step
from mlxchat.optim.schedule import (
    learning_rate_multiplier,
    muon_momentum,
    weight_decay_multiplier,
    width_scale,
)
from mlxchat.plan.memory import BatchPlan
from mlxchat.runtime import mx, nn, tree_flatten
from mlxchat.train.step import StepParts, compile_step

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
    optimizer, rates = MuonAdamW(model), golden_rates(case)
    loss_and_gradients = nn.value_and_grad(model, case.loss)
    for expected in case.facts["train_losses"]:
        loss, tree = loss_and_gradients(model)
        assert loss.item() == pytest.approx(expected, abs=1e-4)
        optimizer.update(model, dict(tree_flatten(tree)), rates)
    assert case.loss(model).item() == pytest.approx(case.facts["loss_after_3_steps"], abs=1e-4)
    for name, expected in case.load("weights_after_3_steps").items():
        assert relative(model.named_parameters()[name], expected) < 1e-3, name


def test_every_parameter_has_a_group_with_a_learning_rate(case: Case) -> None:
    arch = case.config.arch
    groups = {group_of(arch, name) for name in GPT(case.config).named_parameters()}
    assert groups == set(PARAM_GROUPS[arch])
    assert {group.name for group in groups} == set(LEARNING[arch])
    with pytest.raises(KeyError):
        group_of(arch, "transformer.wpe.weight")


def test_state_arrays_keep_their_names_and_shapes(case: Case) -> None:
    model = case.model()
    optimizer = MuonAdamW(model)
    before = {name: (array.shape, array.dtype) for name, array in optimizer.state.items()}
    optimizer.update(model, model.named_parameters(), golden_rates(case))
    after = {name: (array.shape, array.dtype) for name, array in optimizer.state.items()}
    assert list(after.items()) == list(before.items())


def test_state_names_are_those_of_saved_runs(case: Case) -> None:
    names = set()
    for name in case.model().named_parameters():
        if name.startswith("transformer.h."):
            names.add(f"muon.{name}")
            names |= {f"normuon.{name}"} if case.config.arch == "modern" else set()
        else:
            names |= {f"adamw.{name}.m", f"adamw.{name}.v"}
    assert MuonAdamW(case.model()).state.keys() == {"step", *names}


def test_a_step_by_hand_equals_the_training_loops_to_the_bit(case: Case) -> None:
    rates, clip_at = golden_rates(case), 1.0
    ids, targets = np.array(case.io["ids"]), np.array(case.io["targets"])
    targets[0, 3] = -1
    looped, by_hand = case.model(), case.model()
    step = StepParts(
        model=looped,
        optimizer=MuonAdamW(looped),
        batches=repeat(Batch(ids, targets, LoaderState())),
        rates=lambda _: rates,
        plan=BatchPlan(device_batch_size=len(ids), accumulation=1, chunk_rows=CHUNK_ROWS),
        grad_clip=clip_at,
    )
    launch = compile_step(step)
    optimizer = MuonAdamW(by_hand, RECIPES[case.config.arch]._replace(grad_clip=clip_at))
    for number in (1, 2, 3):
        expected = launch(number).read()[0]
        assert optimizer.step(by_hand, ids, targets, rates).item() == expected
    for name, p in looped.named_parameters().items():
        assert mx.array_equal(by_hand.named_parameters()[name], p), name
    assert optimizer.state.keys() == step.optimizer.state.keys()
    for name, array in step.optimizer.state.items():
        assert mx.array_equal(optimizer.state[name], array), name


def test_steps_at_the_recipes_rates_lower_the_loss(case: Case) -> None:
    model = case.model()
    optimizer = MuonAdamW(model, tokens_per_step=case.io["ids"].size)
    assert optimizer.rates.learning.keys() == LEARNING[case.config.arch].keys()
    losses = [optimizer.step(model, case.io["ids"], case.io["targets"]).item() for _ in range(5)]
    assert losses[0] == pytest.approx(case.loss(case.model()).item(), abs=1e-5)
    assert losses[-1] < losses[0]


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
def test_neurons_get_one_size_and_the_norm_stays(shape: tuple[int, int]) -> None:
    g = mx.random.normal((1, *shape), key=mx.random.key(0))
    second = muon.NorMuon().init(g[0])[1][None]
    assert second.size == max(shape)
    evened, after = muon.normalise_neurons(g, second)
    assert mx.linalg.norm(evened).item() == pytest.approx(mx.linalg.norm(g).item(), rel=1e-5)
    axis = 2 if shape[0] > shape[1] else 1
    sizes = mx.linalg.norm(evened, axis=axis)  # all alike in the first step
    assert mx.allclose(sizes, sizes.mean(), rtol=1e-5)
    assert mx.allclose(after, 0.1 * g.square().mean(axis=axis, keepdims=True), rtol=1e-5)


def test_weight_decay_acts_only_along_the_update() -> None:
    p = mx.array([[1.0, -1.0], [1.0, 1.0]])
    g = mx.array([[1.0, 1.0], [1.0, -1.0]])  # orthogonal already
    rule = muon.NorMuon()
    state = [[array] for array in rule.init(p)]
    number, lr, momentum = mx.array(1.0), mx.array(0.1), mx.array(0.0)
    decays = []
    for decay in (0.0, 0.5):
        step = Step(number, lr, momentum, mx.array(decay), mx.float32)
        [after], _ = rule.update([p], [g], state, step)
        decays.append(after)
    assert mx.allclose(decays[0] - decays[1], mx.array([[0.05, 0.0], [0.05, 0.0]]), atol=1e-6)


def test_clipping_bounds_the_joint_norm() -> None:
    gradients = {"a": mx.array([3.0]), "b": mx.array([[4.0]])}
    clipped, norm = clip(gradients, 1.0)
    assert norm.item() == 5
    assert clipped["a"].item() == pytest.approx(0.6)
    assert clip(gradients, 10.0)[0]["b"].item() == 4
    assert clip(gradients, 0.0)[0] is gradients


def test_norms_of_large_gradients_do_not_drift() -> None:
    embedding = 1e-3 * mx.random.normal((2000, 768), key=mx.random.key(0))
    matrix = mx.full((1, 512, 2048), 0.37)
    squares = [np.square(np.array(g, np.float64)).sum() for g in (embedding, matrix)]
    _, norm = clip({"embedding": embedding, "matrix": matrix}, limit=0)
    assert norm.item() == pytest.approx(sum(squares) ** 0.5, rel=1e-6)
    for stack in (matrix, matrix.swapaxes(1, 2)):  # Muon transposes tall matrices
        norm = muon.frobenius_norm(stack)
        assert norm.shape == (1, 1, 1)
        assert norm.item() == pytest.approx(squares[1] ** 0.5, rel=1e-6)


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
    short = muon_momentum("modern", 300, 500, 0.65)  # where they overlap, the warm-up counts
    assert short == pytest.approx(0.85 + 0.12 * 0.75)


def test_modern_weight_decay_falls_to_zero() -> None:
    assert weight_decay_multiplier("classic", 99, 100) == 1
    falling = [weight_decay_multiplier("modern", i, 100) for i in (0, 50, 100)]
    assert falling == pytest.approx([1, 0.5, 0], abs=1e-12)
