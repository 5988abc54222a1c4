"""How each rank divides its rows of a step into micro-batches."""

import pytest

from mlxchat.plan.memory import BatchPlan


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize("accumulation", range(1, 7))
@pytest.mark.parametrize("ranks", range(1, 5))
def test_each_rank_computes_its_rows_and_no_more_at_a_time(
    rows: int, accumulation: int, ranks: int
) -> None:
    plan = BatchPlan(device_batch_size=rows, accumulation=accumulation, streams=2 - rows % 2)
    if rows * accumulation % ranks:
        return
    own = plan.per_rank(ranks)
    assert own.device_batch_size * own.accumulation * ranks == rows * accumulation
    assert own.device_batch_size <= rows
    assert own.device_batch_size % own.streams == 0
