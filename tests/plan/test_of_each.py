"""How the rows of a step are divided among ranks, and each rank's among micro-batches."""

import pytest

from mlxchat.errors import MlxchatError
from mlxchat.plan.memory import BatchPlan
from mlxchat.train.world import ALONE, World


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize("accumulation", range(1, 7))
@pytest.mark.parametrize("ranks", range(1, 5))
def test_each_rank_computes_its_rows_and_no_more_at_a_time(
    rows: int, accumulation: int, ranks: int
) -> None:
    plan = BatchPlan(device_batch_size=rows, accumulation=accumulation, streams=2 - rows % 2)
    if rows * accumulation % ranks:
        return
    own = plan.of_each(ranks)
    assert own.device_batch_size * own.accumulation * ranks == rows * accumulation
    assert own.device_batch_size <= rows
    assert own.device_batch_size % own.streams == 0


def test_a_single_rank_exchanges_nothing() -> None:
    assert ALONE.alone
    assert ALONE.leads
    assert ALONE.gather([1.5, -0.1]).tolist() == [[1.5, -0.1]]
    assert ALONE.gather_texts("ä") == ["ä"]
    assert ALONE.rows(7) == slice(0, 7)
    given: dict = {}
    assert ALONE.sum(given) is given


def test_rows_that_cannot_be_divided_are_refused_with_the_numbers_that_can() -> None:
    world = World()
    world.size = 4
    with pytest.raises(MlxchatError, match="The 6 rows of a step cannot be divided") as raised:
        world.rows(6)
    assert raised.value.remedy.startswith("Use 1, 2, 3 or 6 ranks")
