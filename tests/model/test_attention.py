"""Causal attention against its formula, in blocks of queries and with windows."""

import dataclasses
import math

import pytest
from support.memory import memory_held

from mlxchat.model import block
from mlxchat.model.attention import LARGEST_BOUND, scores_are_bounded
from mlxchat.model.block import causal_attention
from mlxchat.model.config import ERAS, HEAD_DIM
from mlxchat.model.cpu_attention import bounded_attention
from mlxchat.model.norm import norm
from mlxchat.model.size import QUERY_BLOCK, query_block
from mlxchat.runtime import machine, mx

SCALE = 0.3


def random_qkv(
    B: int, H: int, n_kv_head: int, T: int, S: int
) -> tuple[mx.array, mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(0), 3)
    q = mx.random.normal((B, H, T, 8), key=keys[0])
    k, v = (mx.random.normal((B, n_kv_head, S, 8), key=key) for key in keys[1:])
    return q, k, v


def formula(q: mx.array, k: mx.array, v: mx.array, window: int, scale: float = SCALE) -> mx.array:
    T, S, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = (mx.repeat(x, groups, axis=1) for x in (k, v))
    query, key = mx.arange(S - T, S)[:, None], mx.arange(S)
    seen = (key <= query) & (query - key <= window)
    scores = mx.where(seen, scale * q @ k.swapaxes(-1, -2), -math.inf)
    return mx.softmax(scores, axis=-1) @ v


@pytest.fixture(params=["cpu", "metal", "cuda"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attention takes as many queries at a time as it does on this backend."""
    here = dataclasses.replace(machine(), backend=request.param)
    monkeypatch.setattr(block, "machine", lambda: here)
    return request.param


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("T", "S"),
    [
        (2, 2),
        (7, 30),
        (QUERY_BLOCK + 1, QUERY_BLOCK + 1),
        (2 * QUERY_BLOCK + 9, 3 * QUERY_BLOCK),
        (1, 40),
    ],
)
@pytest.mark.parametrize("window", [0, 3, 100, QUERY_BLOCK, 10_000])
def test_attention_equals_the_formula(T: int, S: int, window: int) -> None:
    q, k, v = random_qkv(2, 4, 2, T, S)
    if T == 1:  # a single query sees all the keys that it is given
        k, v = (x[:, :, max(0, S - 1 - window) :] for x in (k, v))
    expected = formula(q, k, v, window)
    assert mx.allclose(causal_attention(q, k, v, SCALE, window), expected, atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("window", [100, 10_000])
def test_gradients_equal_those_of_the_formula(window: int) -> None:
    arrays = random_qkv(1, 2, 2, 2 * QUERY_BLOCK + 9, 2 * QUERY_BLOCK + 9)
    weights = mx.random.normal(arrays[0].shape, key=mx.random.key(1))

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (weights * causal_attention(q, k, v, SCALE, window)).sum()

    def theirs(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (weights * formula(q, k, v, window)).sum()

    computed, expected = (mx.grad(f, argnums=(0, 1, 2))(*arrays) for f in (ours, theirs))
    for a, b in zip(computed, expected, strict=True):
        assert mx.allclose(a, b, atol=1e-4)


def test_the_mask_hides_positions_from_a_single_query() -> None:
    q, k, v = random_qkv(2, 2, 2, 1, 6)
    mask = mx.array([[0, 0, 0, 0, 0, 0], [-1e9, -1e9, 0, 0, 0, 0]])[:, None, None]
    output = causal_attention(q, k, v, SCALE, 10, mask)
    assert mx.allclose(output[:1], formula(q, k, v, 10)[:1], atol=1e-6)
    assert mx.allclose(output[1:], formula(q, k[:, :, 2:], v[:, :, 2:], 10)[1:], atol=1e-6)


@pytest.mark.parametrize(
    ("window", "sizes"),
    [
        (10_000, {"cpu": QUERY_BLOCK, "metal": 2048, "cuda": 2048}),
        (2047, {"cpu": QUERY_BLOCK, "metal": 2048, "cuda": 2048}),
        (2046, {"cpu": QUERY_BLOCK, "metal": QUERY_BLOCK, "cuda": 2048}),
        (512, {"cpu": QUERY_BLOCK, "metal": QUERY_BLOCK, "cuda": 512}),
        (128, {"cpu": QUERY_BLOCK, "metal": QUERY_BLOCK, "cuda": 512}),
    ],
)
def test_queries_are_taken_in_blocks_where_no_kernel_is_fused(
    backend: str, window: int, sizes: dict[str, int]
) -> None:
    assert query_block(backend, 2048, 2048, window) == sizes[backend]


@pytest.mark.skipif(machine().backend != "cpu", reason="only CPUs hold the scores")
def test_attention_holds_the_scores_of_one_block_at_a_time() -> None:
    T = 8 * QUERY_BLOCK
    q, k, v = random_qkv(1, 8, 8, T, T)
    mx.eval(q, k, v)
    before = memory_held()
    mx.eval(causal_attention(q, k, v, SCALE, T))
    assert mx.get_peak_memory() - before < 4 * 8 * T * T


# ==== Attention of bounded scores, on CPUs ====


def at_the_bound(n_kv_head: int, T: int) -> list[mx.array]:
    """Normalised queries and keys of which many are equal or opposite, values, and weights."""
    keys = mx.random.split(mx.random.key(0), 4)
    directions = mx.random.normal((2, 1, 1, 8), key=keys[0])
    signs = mx.random.bernoulli(0.5, (2, 4, T, 1), key=keys[1]) * 2 - 1
    q = norm(signs * directions)
    k = norm((signs * directions)[:, :n_kv_head])
    v = mx.random.normal((2, n_kv_head, T, 8), key=keys[2])
    return [q, k, v, mx.random.normal(q.shape, key=keys[3])]


@pytest.mark.parametrize(
    ("n_kv_head", "T"), [(2, 1), (4, 2), (1, QUERY_BLOCK), (2, QUERY_BLOCK + 1)]
)
@pytest.mark.parametrize("window", [0, 3, QUERY_BLOCK - 1, QUERY_BLOCK, 10_000])
@pytest.mark.parametrize("bound", [4.0, LARGEST_BOUND])
def test_bounded_attention_and_its_gradients_equal_the_formula(
    n_kv_head: int, T: int, window: int, bound: float
) -> None:
    q, k, v, weights = at_the_bound(n_kv_head, T)
    scale = bound / q.shape[-1]
    assert scores_are_bounded(scale, q.shape[-1])

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (weights * bounded_attention(q, k, v, scale, window)).sum()

    def theirs(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (weights * formula(q, k, v, window, scale)).sum()

    y, expected = bounded_attention(q, k, v, scale, window), formula(q, k, v, window, scale)
    assert mx.allclose(y, expected, rtol=1e-5, atol=1e-5)
    found, expected = (mx.grad(f, argnums=(0, 1, 2))(q, k, v) for f in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        # What rounds are the gradients of scores, up to 1, which are multiplied by the scale.
        assert mx.abs(a - b).max() <= 1e-5 * max(1.0, scale, mx.abs(b).max().item())


def test_the_scores_of_all_eras_are_bounded() -> None:
    for era in ERAS.values():
        assert scores_are_bounded(era.qk_scale**2 / HEAD_DIM**0.5, HEAD_DIM), era.name
    assert not scores_are_bounded(2 / HEAD_DIM**0.5, 4 * HEAD_DIM)
