"""The functions for CPUs against numpy in double precision, and products of a few rows."""

import dataclasses

import numpy as np
import pytest

from mlxchat.autotune import fixed
from mlxchat.model import cpu
from mlxchat.model.cpu import (
    exp,
    log_sum_exp,
    multiply_few_rows,
    pieces,
    relu_squared,
    sum_last,
    tanh,
)
from mlxchat.runtime import mx

X = np.concatenate([np.linspace(-87, 87, 20_001), [0.0, -0.5, 0.5, 1e-6]]).astype(np.float32)


def test_exp_equals_numpys() -> None:
    exact = np.exp(X.astype(np.float64))
    assert np.max(np.abs(np.array(exp(mx.array(X))) / exact - 1)) < 6e-6
    near = np.abs(X) < 10
    assert np.max(np.abs(np.array(exp(mx.array(X[near]))) / exact[near] - 1)) < 1e-6


def test_tanh_equals_numpys_at_any_size() -> None:
    x = np.concatenate([X, [-1e30, 1e30]]).astype(np.float32)
    assert np.max(np.abs(np.array(tanh(mx.array(x))) - np.tanh(x.astype(np.float64)))) < 3e-7


def test_gradients_equal_the_derivatives() -> None:
    x = mx.array(np.linspace(-8, 8, 1001, dtype=np.float32))
    for function, derivative in ((exp, mx.exp), (tanh, lambda v: 1 - mx.tanh(v).square())):
        gradient = mx.grad(lambda v, f=function: f(v).sum())(x)
        assert mx.allclose(gradient, derivative(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocab_size", [1, 97, 256, 257, 4096, 50_257, 65_536])
def test_log_sum_exp_has_no_bias(vocab_size: int) -> None:
    x = np.random.default_rng(0).normal(scale=3, size=(48, vocab_size)).astype(np.float32)
    exact = np.log(np.exp(x.astype(np.float64)).sum(axis=-1))
    errors = np.array(log_sum_exp(mx.array(x)), np.float64) - exact
    assert abs(errors.mean()) < 1e-6
    assert abs(errors).max() < 3e-6


@pytest.mark.parametrize("shape", [(1,), (255,), (256,), (257,), (3, 1_000_001), (70_000, 3)])
@pytest.mark.parametrize("value", [11.09, -1e-3])
def test_sums_of_equal_numbers_do_not_drift(shape: tuple[int, ...], value: float) -> None:
    x = mx.full(shape, value)
    exact = float(x.flatten()[0].item()) * np.prod(shape)
    assert sum_last(x, axes=len(shape)).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_sums_are_over_the_last_axes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = dataclasses.replace(cpu.machine(), backend=backend)
    monkeypatch.setattr(cpu, "machine", lambda: there)
    x = mx.random.normal((2, 3, 700), key=mx.random.key(0)).swapaxes(1, 2)
    exact = np.array(x, np.float64)
    for axes in (1, 2, 3):
        found = np.array(sum_last(x, axes))
        assert np.allclose(found, exact.sum(axis=tuple(range(-axes, 0))), rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])  # CPUs hold the input, GPUs the output
def test_relu_squared_and_its_gradient_are_exact(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = dataclasses.replace(cpu.machine(), backend=backend)
    monkeypatch.setattr(cpu, "machine", lambda: there)
    x = mx.array([-2.0, -0.0, 0.0, 0.5, 3.0])
    assert relu_squared(x).tolist() == [0, 0, 0, 0.25, 9]
    gradient = mx.grad(lambda v: (3 * relu_squared(v)).sum())(x)
    assert mx.allclose(gradient, mx.array([0, 0, 0, 3, 18.0]))


@pytest.mark.parametrize("shape", [(1, 12), (300, 64), (1537, 256), (4096, 768), (768, 3072)])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (3, 1), (1, 4)])
@pytest.mark.parametrize("way", ["one stream", "two streams"])
def test_a_product_in_pieces_equals_the_whole(
    shape: tuple[int, int], rows: tuple[int, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LEAST_DIVIDED", 2**16)
    x = mx.random.normal((*rows, shape[1]), key=mx.random.key(0))
    weight = mx.random.normal(shape, key=mx.random.key(1))
    with fixed(products=way):
        y = multiply_few_rows(x, weight)
    assert y.shape == (*rows, shape[0])
    assert mx.allclose(y, x @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "count"),
    [
        (1, 768, 768, 1),
        (1, 3072, 768, 4),
        (1, 768, 3072, 4),
        (1, 65_536, 768, 64),
        (4, 65_536, 768, 256),
        (1, 6 * 1201, 64, 1),  # 3 * 1201 rows are still too many, and odd
    ],
)
def test_pieces_are_small_or_the_matrix_stays_whole(
    rows: int, outputs: int, inputs: int, count: int
) -> None:
    assert pieces(rows, outputs, inputs) == count
