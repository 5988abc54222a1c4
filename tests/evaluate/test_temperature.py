"""The temperatures without the soft cap that come nearest to those with it."""

from typing import Any

import numpy as np
import pytest
from support.models import network

from mlxchat.evaluate.temperature import nearest_temperature, nearest_temperatures
from mlxchat.runtime import mx


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_two_tokens_need_the_temperature_that_undoes_the_cap(temperature: float) -> None:
    """Of two tokens only the difference of the logits counts, which a temperature can match."""
    raw = mx.array([[2.0, -2.0]])
    found = nearest_temperature(raw, 2, temperature)
    assert found == pytest.approx(temperature / np.tanh(1), rel=1e-3)


def test_the_nearest_temperature_is_the_least_divergent() -> None:
    raw = 6 * mx.random.normal((64, 50), key=mx.random.key(0))
    z = np.array(raw, np.float64)

    def log_softmax(x: Any) -> Any:
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    ours = log_softmax(8 * np.tanh(z / 8) / 0.6)

    def divergence(temperature: float) -> float:
        return float((np.exp(ours) * (ours - log_softmax(z / temperature))).sum(-1).mean())

    found = nearest_temperature(raw, 8, 0.6)
    assert found > 0.65
    assert divergence(found) < min(divergence(found * 0.99), divergence(found * 1.01))


def test_a_cap_that_is_never_reached_needs_no_other_temperature() -> None:
    raw = mx.random.normal((16, 50), key=mx.random.key(0))
    assert nearest_temperature(raw, 64, 0.6) == pytest.approx(0.6, rel=2e-3)


def test_temperatures_are_measured_on_text_of_the_built_in_corpus_by_default() -> None:
    measured = nearest_temperatures(network(sequence_len=64))
    assert measured.text == "the built-in corpus of mlxchat"
    assert measured.positions == 8 * 64
    assert measured.usual > 0.6 and measured.one > 1
