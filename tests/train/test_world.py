"""Exchanges between ranks: what each gets, how matrices travel, and how differences are found."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from mlxchat.errors import MlxchatError
from mlxchat.runtime import mx
from mlxchat.train import world
from mlxchat.train.world import ALONE, World


def test_a_single_rank_exchanges_nothing() -> None:
    assert ALONE.alone
    assert ALONE.leads
    assert ALONE.all_gather([1.5, -0.1]).tolist() == [[1.5, -0.1]]
    assert ALONE.all_gather_texts("ä") == ["ä"]
    assert ALONE.rows(7) == slice(0, 7)
    given: dict = {}
    assert ALONE.all_sum(given) is given


def test_matrices_are_rounded_on_their_way_and_vectors_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks with the same numbers; those of a vector are shares of the loss, say."""
    third = 1 / 3
    monkeypatch.setattr(mx.distributed, "all_sum", lambda array, **_: array + array)
    both = Pair([])
    arrays = {"m": mx.full((2, 3), third), "v": mx.full((5,), third), "n": mx.full((3, 1), third)}
    exact = both.all_sum(dict(arrays))
    rounded = both.all_sum(dict(arrays), mx.bfloat16)
    assert {name: each.shape for name, each in rounded.items()} == {
        name: each.shape for name, each in arrays.items()
    }
    assert {each.dtype for each in rounded.values()} == {mx.float32}
    for name in arrays:
        assert exact[name].max().item() == np.float32(third) * 2
        apart = abs(rounded[name].max().item() - 2 * third)
        assert (apart > 1e-4) == (name != "v")
        assert apart < 2**-8


def test_rows_that_cannot_be_divided_are_refused_with_the_numbers_that_can() -> None:
    four = World()
    four.size = 4
    with pytest.raises(MlxchatError, match="The 6 rows of a step cannot be divided") as raised:
        four.rows(6)
    assert raised.value.remedy.startswith("Use 1, 2, 3 or 6 ranks")


def test_weights_that_differ_in_a_bit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "COMPARED", 4)
    mine = {"a": mx.arange(10, dtype=mx.float32), "b": mx.zeros(3, mx.bfloat16)}
    others = [
        {**mine, "a": mx.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 8], mx.float32)},
        {**mine, "b": mx.array([0, 0, -0.0], mx.bfloat16)},
    ]
    for other, name in zip(others, mine, strict=True):
        pair = Pair([world._checksum(array) for array in other.values()])
        with pytest.raises(world.RanksDifferError, match=f"At step 7, {name} of rank 1"):
            pair.require_equal(mine, 7)
    Pair([world._checksum(array) for array in mine.values()]).require_equal(mine, 7)


class Pair(World):
    """Two ranks, of which the other one's numbers are given."""

    def __init__(self, other: list[float]) -> None:
        super().__init__()
        self._group = cast(mx.distributed.Group, object())
        self._other = other

    def all_gather(self, numbers: Sequence[float]) -> npt.NDArray[np.float64]:
        return np.array([numbers, self._other])
