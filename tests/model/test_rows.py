"""Products of a few rows with a large matrix, computed in pieces."""

import pytest

from mlxchat.model.cpu import multiply_few_rows, pieces
from mlxchat.runtime import mx


@pytest.mark.parametrize("shape", [(1, 12), (300, 64), (1536, 257), (4096, 768), (768, 3072)])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (3, 1), (1, 4)])
def test_a_product_in_pieces_is_the_same(shape: tuple[int, int], rows: tuple[int, ...]) -> None:
    x = mx.random.normal((*rows, shape[1]), key=mx.random.key(0))
    weight = mx.random.normal(shape, key=mx.random.key(1))
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
        (1, 6 * 1201, 64, 1),  # pieces of 3 * 1201 are too large still, and odd
    ],
)
def test_pieces_are_small_or_the_matrix_stays_whole(
    rows: int, outputs: int, inputs: int, count: int
) -> None:
    assert pieces(rows, outputs, inputs) == count
