"""Dropout of the network in training."""

import mlx.core as mx
import numpy as np
import pytest

from mlxchat.model.backward import ordered_loss
from mlxchat.model.config import GPTConfig
from mlxchat.model.dropout import NO_DROPOUT, Dropout
from mlxchat.model.gpt import GPT
from mlxchat.model.rope import Rope
from mlxchat.optim.gradients import compile_gradients

RATE = 0.3
IDS = mx.array([[1, 5, 2, 7, 3, 1, 4, 4], [9, 2, 2, 8, 1, 0, 6, 3]])
TARGETS = mx.roll(IDS, -1, axis=1)


def network(arch: str = "modern", seed: int = 0) -> GPT:
    config = GPTConfig.from_depth(2, vocab_size=300, sequence_len=8, arch=arch, head_dim=32)
    model = GPT.new(config, seed, mx.float32)
    key = mx.random.key(1)  # what begins at zero would hide what is dropped
    drawn = [
        (name, weight + 0.1 * mx.random.normal(weight.shape, key=key))
        for name, weight in model.named_parameters().items()
    ]
    model.load_weights(drawn)
    return model


def test_a_share_is_zeroed_and_the_expected_value_stays() -> None:
    kept = np.array(Dropout(RATE, mx.random.key(0))(mx.ones((100_000,))))
    assert set(np.unique(kept)) == {0.0, np.float32(1 / (1 - RATE))}
    assert np.mean(kept == 0) == pytest.approx(RATE, abs=0.01)
    assert kept.mean() == pytest.approx(1, abs=0.01)


def test_what_is_zeroed_follows_from_the_key() -> None:
    dropout, x = Dropout(RATE, mx.random.key(0)), mx.ones((1000,))
    assert mx.array_equal(dropout(x), dropout(x))
    parts = [np.array(part(x)) for part in dropout.split(3)]
    assert not any(np.array_equal(parts[i], parts[j]) for i in range(3) for j in range(i))
    assert NO_DROPOUT(x) is x
    assert Dropout(RATE, mx.random.key(0))(x.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_a_network_by_hand() -> None:
    model = network("classic")
    dropout = Dropout(RATE, mx.random.key(3))
    rope = Rope(model.config.traits.rope_base, 0)
    embedding, *layers = dropout.split(3)
    x = model.embed(IDS, dropout=embedding)
    for i, own in enumerate(layers):
        x, _ = model.layer(i, x, x, {}, IDS, rope, dropout=own)
    expected = model.final_norm(x, x)
    assert mx.array_equal(model.features(IDS, dropout=dropout), expected)
    assert not mx.allclose(model.features(IDS), expected, atol=1e-2)


@pytest.mark.parametrize("arch", ["classic", "modern"])
def test_gradients_are_those_of_the_same_zeroes(arch: str) -> None:
    """Recomputed activations must lose the same numbers; and a finite difference agrees."""
    model, key = network(arch), mx.random.key(7)
    count = mx.array(IDS.size)
    plain, again = (
        compile_gradients(model, checkpoint=checkpoint, dropout=RATE)(
            model.named_parameters(), IDS, TARGETS, count, {}, key
        )
        for checkpoint in (False, True)
    )
    assert plain[0].item() == pytest.approx(again[0].item(), rel=1e-6)
    for name, gradient in plain[1].items():
        assert mx.allclose(gradient, again[1][name], rtol=1e-4, atol=1e-6), name

    name, move = "transformer.h.1.mlp.c_fc.weight", 1e-2
    direction = plain[1][name] / mx.linalg.norm(plain[1][name])

    def loss(step: float) -> float:
        parameters = model.named_parameters()
        parameters[name] = parameters[name] + step * direction
        [own] = Dropout(RATE, key).split(1)  # as the only stream does
        with model.using(parameters):
            return float(ordered_loss(model, IDS, TARGETS, dropout=own).item())

    slope = (loss(move) - loss(-move)) / (2 * move)
    assert slope == pytest.approx(mx.linalg.norm(plain[1][name]).item(), rel=0.02)


def test_every_key_zeroes_other_numbers_and_none_none() -> None:
    model, count = network(), mx.array(IDS.size)
    accumulate = compile_gradients(model, dropout=RATE)
    losses = [
        accumulate(model.named_parameters(), IDS, TARGETS, count, {}, key)[0].item()
        for key in (mx.random.key(1), mx.random.key(2), mx.random.key(1), None)
    ]
    assert losses[0] == losses[2]
    assert len(set(losses)) == 3
    assert losses[3] == pytest.approx(model.loss(IDS, TARGETS).item(), rel=1e-6)
