"""The kernel of attention in decoding, emulated, against a softmax by hand."""

from pathlib import Path

import numpy as np
import pytest
from support.emulated import COMPILER, emulate

from mlxchat.model import attention
from mlxchat.model.attention import UNSEEN, attend_from_one
from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

Floats = np.ndarray


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


@pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
@pytest.mark.parametrize(("heads_of_keys", "masks"), [(1, 2), (2, 1)])
def test_it_is_the_softmax_over_what_is_seen(
    heads_of_keys: int, masks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def emulated(self: Kernel, *given: object, **options: object) -> list[mx.array]:
        return emulate(tmp_path, self, *given, **options)

    monkeypatch.setattr(Kernel, "__call__", emulated)
    monkeypatch.setattr(attention, "_kernel_is_faster", lambda *_: True)
    random, (B, H, S, D) = np.random.default_rng(0), (2, 2, 160, 32)
    q = unit(random.normal(size=(B, H, 1, D)))
    k, v = random.normal(size=(2, B, heads_of_keys, S, D))
    k = unit(k)
    k[:, :, 140:] *= 50  # what is hidden may be anything
    slots = np.arange(S)
    seen = np.stack([(slots >= 3) & (slots < 133), slots == 77])[:masks]
    mask = mx.array(np.where(seen, 0, UNSEEN), mx.float32)[:, None, None]
    arrays = (mx.array(x, mx.float32) for x in (q, k, v))
    found = np.array(attend_from_one(*arrays, 1.44 / D**0.5, mask))
    assert np.abs(found - by_hand(q, k, v, 1.44 / D**0.5, seen)).max() < 1e-5
