"""Files that stand for far more than they hold take little memory, by every way in."""

from pathlib import Path

import pytest
from support.peaks import MB, WAYS, hostile, line_of, reading


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_2_kilobytes_that_stand_for_51_gigabytes_take_little_memory(
    tmp_path: Path, way: str
) -> None:
    found = reading(way, hostile(way, tmp_path))
    assert found.size < 2_000
    assert "more than 64,000,000 bytes" in found.said
    assert found.peak < 500 * MB


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data fetch --from", "sft --data"])
def test_a_line_of_600_megabytes_takes_little_memory(tmp_path: Path, way: str) -> None:
    found = reading(way, line_of(600)(tmp_path))
    assert "line 1 is longer than the maximum of 32,000,000 characters" in found.said
    assert found.peak < 500 * MB
