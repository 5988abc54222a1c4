"""exp, tanh and the squared ReLU against numpy in double precision, and their gradients."""

import dataclasses

import numpy as np
import pytest

from mlxchat.model import cpu
from mlxchat.model.cpu import exp, relu_squared, tanh
from mlxchat.runtime import mx

X = np.concatenate([np.linspace(-87, 87, 20_001), [0.0, -0.5, 0.5, 1e-6]]).astype(np.float32)


def test_exp_is_numpys() -> None:
    exact = np.exp(X.astype(np.float64))
    assert np.max(np.abs(np.array(exp(mx.array(X))) / exact - 1)) < 6e-6
    near = np.abs(X) < 10
    assert np.max(np.abs(np.array(exp(mx.array(X[near]))) / exact[near] - 1)) < 1e-6


def test_tanh_is_numpys_at_any_size() -> None:
    x = np.concatenate([X, [-1e30, 1e30]]).astype(np.float32)
    assert np.max(np.abs(np.array(tanh(mx.array(x))) - np.tanh(x.astype(np.float64)))) < 3e-7


def test_gradients_are_those_of_the_formulas() -> None:
    x = mx.array(np.linspace(-8, 8, 1001, dtype=np.float32))
    for function, derivative in ((exp, mx.exp), (tanh, lambda v: 1 - mx.tanh(v).square())):
        gradient = mx.grad(lambda v, f=function: f(v).sum())(x)
        assert mx.allclose(gradient, derivative(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])  # keep the input, or the output
def test_relu_squared_and_its_gradient_are_exact(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = dataclasses.replace(cpu.machine(), backend=backend)
    monkeypatch.setattr(cpu, "machine", lambda: there)
    x = mx.array([-2.0, -0.0, 0.0, 0.5, 3.0])
    assert relu_squared(x).tolist() == [0, 0, 0, 0.25, 9]
    gradient = mx.grad(lambda v: (3 * relu_squared(v)).sum())(x)
    assert mx.allclose(gradient, mx.array([0, 0, 0, 3, 18.0]))
