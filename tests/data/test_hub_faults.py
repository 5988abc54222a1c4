"""The hub at its worst; `benchmarks/download_faults.py` is the long form."""

from collections import Counter
from pathlib import Path

import pytest
from support.download_faults import Schedules
from support.streaming_runs import interrupted_run


@pytest.mark.slow
def test_every_file_is_right_or_its_error_is_reported(tmp_path: Path) -> None:
    with Schedules(tmp_path) as schedules:
        outcomes = Counter(schedules.run(seed) for seed in range(200))
    assert outcomes["right"] > 100
    assert outcomes["reported"] > 5


@pytest.mark.slow
def test_a_killed_run_reads_what_an_offline_one_reads_in_the_same_order(tmp_path: Path) -> None:
    offline, killed, processes = interrupted_run(seed=1, folder=tmp_path, kills=3)
    assert killed == offline
    assert processes >= 4
