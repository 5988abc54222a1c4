"""The kernels of decoding, emulated, against arithmetic by hand."""

from pathlib import Path

import numpy as np
import pytest
from support.emulated import COMPILER, emulate

from mlxchat.model import attention, stack
from mlxchat.model.attention import Span, attend_to_buffers
from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

Floats = np.ndarray
COMPILED = [pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="no compiler")]
KERNELS = [pytest.param(True, marks=COMPILED), False]


@pytest.fixture(params=KERNELS, ids=["kernel", "formula"])
def _each_way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def emulated(self: Kernel, *given: object, **options: object) -> list[mx.array]:
        return emulate(tmp_path, self, *given, **options)

    monkeypatch.setattr(Kernel, "__call__", emulated)
    for module in (attention, stack):
        monkeypatch.setattr(module, "_kernel_is_faster", lambda *_: request.param)


def by_hand(q: Floats, k: Floats, v: Floats, scale: float, seen: Floats) -> Floats:
    """Each head by itself, in float64, over the seen slots only."""
    result = np.zeros_like(q)
    for b, h in np.ndindex(q.shape[:2]):
        own, slots = h * k.shape[1] // q.shape[1], seen[b % len(seen)]
        weights = np.exp(scale * k[b, own, slots] @ q[b, h, 0])
        result[b, h, 0] = weights / weights.sum() @ v[b, own, slots]
    return result


def unit(x: Floats) -> Floats:
    return x / np.sqrt((x**2).mean(-1, keepdims=True))


@pytest.mark.usefixtures("_each_way")
@pytest.mark.parametrize(
    ("heads_of_keys", "first", "taken"),
    [(1, [3, 77], [133]), (2, [7], [8]), (2, [0, 20], [5, 130]), (1, [0], [159, 0])],
)
def test_a_position_sees_itself_and_what_came_before(
    heads_of_keys: int, first: list[int], taken: list[int]
) -> None:
    random, (B, H, S, D), layer = np.random.default_rng(0), (2, 2, 160, 32), 1
    q = unit(random.normal(size=(B, H, 1, D)))
    buffers = random.normal(size=(3, 2, B, heads_of_keys, S, D))
    buffers[:, 0] = unit(buffers[:, 0])
    ends = np.broadcast_to(taken, B)
    for row, end in enumerate(ends):
        buffers[:, :, row, :, end:] *= 50  # what is hidden may be anything
    new = random.normal(size=(2, B, heads_of_keys, 1, D))
    new[0] = unit(new[0])
    held = buffers[layer].copy()
    for row, end in enumerate(ends):
        held[:, row, :, end] = new[:, row, :, 0]
    slots = np.arange(S)
    seen = (slots >= np.array(first)[:, None]) & (slots <= ends[:, None])
    expected = by_hand(q, held[0], held[1], 1.44 / D**0.5, seen)
    arrays = (mx.array(x, mx.float32) for x in (q, *new, buffers))
    span = Span(
        mx.arange(S),
        mx.array(first)[:, None, None, None],
        mx.array(taken, mx.int32)[:, None, None, None],
    )
    found = np.array(attend_to_buffers(*arrays, layer, span, 1.44 / D**0.5))
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.usefixtures("_each_way")
def test_stacked_arrays_lie_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "MOST", 2)
    parts = np.arange(4 * 300, dtype=np.float32).reshape(4, 2, 150)
    assert np.array_equal(stack.stack_small([mx.array(part) for part in parts]), parts)
