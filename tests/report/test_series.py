"""The log of a run, read into columns, and what is drawn of a column."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from support.logs import (
    BEGAN,
    evaluated,
    pretraining,
    reinforcement,
    started,
    stepped,
    write_log,
)

from mlxchat.report import series
from mlxchat.report.series import read_run_log, smoothed, thinned
from mlxchat.telemetry.events import Ended, Rewarded, event_to_json


def test_everything_in_a_log_is_found(home: Path) -> None:
    log = read_run_log(write_log(home, "a", pretraining("a", resume_at=40)))
    assert log.steps.step.tolist() == list(range(1, 101))
    assert log.steps["seconds"].sum() == 50
    assert log.evaluations["bits_per_byte"][-1] == pytest.approx(1.02)
    assert [start.step for start in log.starts] == [0, 40]
    assert log.endings[0] is None and log.endings[1] is not None
    assert (len(log.samples), len(log.core), len(log.notes)) == (10, 1, 1)
    assert (log.damaged, log.first, log.last) == (0, BEGAN, BEGAN + 100)
    assert log.total_steps == 100


@pytest.mark.parametrize(
    "event",
    [
        stepped(3, 1.25, waited=0.5),
        stepped(4, math.nan),
        stepped(5, -2.5e-7, seconds=1e-5),
        evaluated(6, 0.987654321),
        reinforcement("r")[1],
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_line_read_fast_is_what_pydantic_reads(
    home: Path, event: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_log(home, "a", [event])  # type: ignore[list-item]
    readers = series._READERS
    line = path.read_bytes()
    assert readers[line[: line.find(b",")]].pattern.fullmatch(line)
    fast = read_run_log(path)
    monkeypatch.setattr(series, "_READERS", {})
    slow = read_run_log(path)
    for name in ("steps", "evaluations", "rewards"):
        one, other = getattr(fast, name), getattr(slow, name)
        np.testing.assert_array_equal(one.step, other.step)
        for column in one.by_name:
            np.testing.assert_array_equal(one[column], other[column])
    assert (fast.first, fast.last) == (slow.first, slow.last)


def test_the_columns_of_rewards_are_those_of_their_fields(home: Path) -> None:
    [reward] = [e for e in reinforcement("r", 1) if isinstance(e, Rewarded)]
    log = read_run_log(write_log(home, "r", [reward]))
    for name in series.REWARD_COLUMNS:
        assert log.rewards[name][0] == getattr(reward, name)


def test_damaged_lines_are_skipped_and_counted(home: Path) -> None:
    good = event_to_json(stepped(7, 2.0)).encode()
    lines = [
        good[:100],
        b"\xff\xfe\x00",
        b'{"event": "step", "step": "many"}',
        b"[" * 2000,
        b"x" * (2**20 + 10),
        b"",
        good.replace(b"2.0", b"1" * 400),
        good,
    ]
    log = read_run_log(write_log(home, "a", [started("a")], b"\n".join(lines) + b"\n"))
    assert log.steps.step.tolist() == [7]
    assert log.damaged == len(lines) - 1
    assert log.lines == len(lines) + 1


def test_a_line_that_is_being_written_is_left_out(home: Path) -> None:
    half = event_to_json(stepped(2, 2.0)).encode()[:-5]
    log = read_run_log(write_log(home, "a", [started("a"), stepped(1, 3.0)], half))
    assert (log.steps.step.tolist(), log.damaged) == ([1], 0)


def test_of_steps_that_are_repeated_the_last_counts(home: Path) -> None:
    events = [stepped(1, 3.0), stepped(2, 9.0), stepped(2, 4.0), stepped(1, 5.0)]
    log = read_run_log(write_log(home, "a", events))
    assert (log.steps.step.tolist(), log.steps["loss"].tolist()) == ([1, 2], [5.0, 4.0])


def test_how_each_process_ended_is_known(home: Path) -> None:
    events = [started("a"), Ended(BEGAN, 5, "interrupted"), started("a", 5), started("a", 5)]
    endings = read_run_log(write_log(home, "a", events)).endings
    assert [end and end.reason for end in endings] == ["interrupted", None, None]


def test_thinning_keeps_every_spike_and_what_is_not_finite() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[[0, 31_415, 99_999]] = [-3.0, 1e9, 5.0]
    values[27_182] = -1e9
    values[50_000] = np.nan
    kept = thinned(values, 600)
    assert len(kept) <= 602
    assert {0, 31_415, 27_182, 50_000, 99_999} <= set(kept.tolist())
    assert thinned(values[:100], 600).tolist() == list(range(100))


def test_smoothing_follows_and_skips_what_is_not_finite() -> None:
    assert smoothed(np.array([2.0, np.nan, 2.0])).tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert np.isnan(smoothed(np.array([np.nan]))).all()


@pytest.mark.slow
def test_a_quarter_of_a_million_steps_are_read_in_seconds(home: Path) -> None:
    path = write_log(home, "long", pretraining("long", 250_000))
    began = time.process_time()
    log = read_run_log(path)
    assert len(log.steps) == 250_000
    assert time.process_time() - began < 4
