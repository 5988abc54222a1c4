"""The source text of each kernel, run on the CPU, computes what the formula beside it does."""

import math
from typing import Any

import numpy as np
import pytest
from support.backends import use_backend
from support.emulated import COMPILER, emulate

from mlxchat import autotune
from mlxchat.model import backward, loss, norm, rope
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.kernels import heads, lookup
from mlxchat.model.kernels import loss as loss_kernel
from mlxchat.model.kernels import norm as norm_kernel
from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

EPS = norm.NORM_EPS
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]


@pytest.fixture(autouse=True)
def emulated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "kernels"
    folder.mkdir(exist_ok=True)

    def call(self: Kernel, *args: Any, **options: Any) -> list[mx.array]:
        return emulate(folder, self, *args, **options)

    monkeypatch.setattr(Kernel, "__call__", call)
    monkeypatch.setattr(loss_kernel, "THREADS", 64)


def draw(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def assert_near(found: mx.array, expected: mx.array, tolerance: float = 1e-5) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    difference = mx.linalg.norm((found - expected).flatten())
    rounding = 1e-7  # of sums whose terms of about 1 cancel, as the gradients of single numbers are
    assert difference <= tolerance * mx.linalg.norm(expected.flatten()) + rounding


@pytest.mark.parametrize(
    ("rows", "vocab"), [(3, 515), (1, 4096), (2, 257), (5, 66)], ids=lambda n: str(n)
)
def test_loss_at_the_bound_without_targets_and_of_odd_vocabularies(rows: int, vocab: int) -> None:
    logits = 8 * draw(rows, vocab)
    logits[0, :5] = mx.array([1e4, -1e4, 80.0, -80.0, 0.0])
    targets = mx.array([vocab - 1, -1, 0, 7, -1][:rows], mx.int32)
    weight = mx.array(0.3)
    found = loss_kernel.cross_entropy_kernel(logits, targets, 15.0, weight)
    expected = loss.cross_entropy_formula(logits, targets, 15.0, weight)
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)
    without = np.array(targets) < 0
    assert not np.array(found[0])[without].any()
    assert not np.array(found[1])[without].any()


def test_loss_that_is_not_finite_stays_so() -> None:
    logits = draw(2, 64)
    logits[1, 3] = math.nan
    losses, _ = loss_kernel.cross_entropy_kernel(
        logits, mx.array([1, 2], mx.int32), 15.0, mx.array(1.0)
    )
    assert np.isnan(np.array(losses)).tolist() == [False, True]


@pytest.mark.parametrize(("count", "width"), [(5, 768), (9, 320), (1, 64), (8, 96)])
def test_norm_and_its_gradient(count: int, width: int) -> None:
    x, d_y, d_stream = (draw(count, width, seed=i) for i in range(3))
    assert_near(norm_kernel.norm_forward(x, EPS), norm.norm(x))
    [expected] = mx.vjp(norm.norm, [x], [d_y])[1]
    assert_near(norm_kernel.norm_backward(x, d_y, d_stream, EPS), expected + d_stream)


@pytest.mark.parametrize(("count", "width"), [(5, 768), (9, 320)])
def test_mixture_and_its_gradients(count: int, width: int) -> None:
    x, x0, *cotangents = (draw(count, width, seed=i) for i in range(5))
    weights = mx.array([1.1]), mx.array([0.2])

    def formula(x: mx.array, x0: mx.array, a: mx.array, b: mx.array) -> norm.Triple:
        mixed = a * x + b * x0
        return norm.norm(mixed), mixed, x0

    (normed, mixed, _), gradients = mx.vjp(formula, [x, x0, *weights], cotangents)
    found = norm_kernel.mix_forward(x, x0, *weights, EPS)
    assert_near(found[0], mixed)
    assert_near(found[1], normed)
    for a, b in zip(
        norm_kernel.mix_backward(x, x0, cotangents, *weights, EPS), gradients, strict=True
    ):
        assert_near(a, b)


@pytest.mark.parametrize(
    ("B", "T", "H", "K", "D", "offsets"),
    [
        (2, 3, 4, 2, 128, [5]),
        (3, 1, 4, 4, 64, [0, 7, 300]),
        (1, 1, 3, 1, 256, [1500]),
        (2, 600, 2, 2, 128, [0]),
    ],
)
def test_heads_and_their_gradient(
    B: int, T: int, H: int, K: int, D: int, offsets: list[int]
) -> None:
    qkv = draw(B, T, H + 2 * K, D)
    cotangents = [draw(B, T, n, D, seed=i) for i, n in enumerate((H, K, K))]
    where = offsets[0] if T > 1 else mx.array(offsets)
    (q, k, _), [gradient] = mx.vjp(
        lambda x: rope._formula(x, (H, K), rope.Rope(1e4, where)), [qkv], cotangents
    )
    frequencies = mx.array(rope._frequencies(D, 1e4))
    at = mx.array(offsets, mx.int32)
    # Angles of float32 are off by their size times its precision.
    tolerance = 1e-5 + max(offsets) * 3e-8
    found = heads.split_forward(qkv, (H, K), at, frequencies, EPS)
    assert_near(found[0], q, tolerance)
    assert_near(found[1], k, tolerance)
    back = heads.split_backward(qkv, cotangents, at, frequencies, EPS)
    assert_near(back, gradient, tolerance)


def test_numbers_of_half_precision_are_read_eight_at_once() -> None:
    x, d_y, d_stream = (draw(9, 512, seed=i).astype(mx.float16) for i in range(3))
    found = norm_kernel.norm_backward(x, d_y, d_stream, EPS)
    [expected] = mx.vjp(norm.norm, [x], [d_y])[1]
    assert_near(found, expected + d_stream, 2e-3)
    targets = mx.array([5, -1, *range(7)])
    for a, b in zip(
        loss_kernel.cross_entropy_kernel(x, targets, 15.0, mx.array(1.0)),
        loss.cross_entropy_formula(x, targets, 15.0, mx.array(1.0)),
        strict=True,
    ):
        assert_near(a, b, 2e-3)


def test_rows_of_a_table() -> None:
    table, ids = draw(50, 66), mx.array([[3, 49, 0], [7, 7, 1]])
    for dtype in (mx.float32, mx.float16):
        found = lookup.look_up_forward(table, ids, dtype)
        assert mx.array_equal(found, table[ids].astype(dtype))


@pytest.mark.parametrize("arch", ["classic", "modern"])
@pytest.mark.parametrize("micro_batch", ["first", "later, with checkpointing"])
def test_gradients_of_a_whole_model(
    arch: Architecture, micro_batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel in its place, differentiated together."""
    config = GPTConfig.from_depth(3, vocab_size=300, sequence_len=12, arch=arch, head_dim=64)
    ids = mx.random.randint(0, 300, (2, 12), key=mx.random.key(1))
    targets = mx.random.randint(-1, 300, (2, 12), key=mx.random.key(2))
    model = GPT.new(config, 3, mx.float32)
    parameters = {n: p + 0.02 * draw(*p.shape) for n, p in model.named_parameters().items()}
    later = micro_batch != "first"
    summed = {n: mx.ones_like(p) for n, p in parameters.items()} if later else {}

    def gradients() -> dict[str, mx.array]:
        def of(parameters: dict[str, mx.array]) -> mx.array:
            with model.using(parameters):
                return backward.ordered_loss(
                    model, ids, targets, 16, mx.array(20), summed=summed, checkpoint=later
                )

        value, found = mx.value_and_grad(of)(parameters)
        return {**found, "loss": value}

    expected = gradients()
    use_backend("cuda", monkeypatch)
    with autotune.fixed(norm="kernel", loss="kernel"):
        found = gradients()
    for name, gradient in expected.items():
        assert_near(found[name], gradient, 1e-5)
