"""Runs that a tracker follows, with a library in the place of tensorboardX."""

from pathlib import Path

import pytest
from support.runs import CONFIG, run
from support.trackers import planted_writer, written

from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.system import system_version
from mlxchat.telemetry import trackers
from mlxchat.telemetry.events import Ended

TRACKED = CONFIG.model_copy(update={"track": "tensorboard"})


def steps_of(name: str, log_folder: Path) -> list[int | None]:
    return [step for value, _, step in written(log_folder) if value == name]


@pytest.mark.slow  # tests/telemetry has the same without a run
def test_a_tracked_run_that_is_resumed_is_told_of_once(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_writer(tmp_path / "library", monkeypatch)
    log_folder = Home(prepared).log(CONFIG.tag).parent
    run(prepared, TRACKED, stop_at=7)
    run(prepared, TRACKED)
    assert steps_of("train/loss", log_folder) == list(range(1, 13))
    assert steps_of("validation/bits_per_byte", log_folder) == [0, 5, 10, 12]
    assert set(steps_of("samples", log_folder)) == {6, 12}
    [(table, step)] = [told for name, *told in written(log_folder) if name == "settings"]
    assert step == 0 and isinstance(table, str) and "mlxchat" in table
    assert "Python" not in table and system_version() not in table


@pytest.mark.slow  # tests/telemetry has the same without a run
def test_a_tracker_that_fails_does_not_end_a_run(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_writer(tmp_path / "library", monkeypatch, at_value="raise RuntimeError('no')")
    *_, last = run(prepared, TRACKED)
    assert isinstance(last, Ended) and last.reason == "finished"


def test_a_missing_library_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKER_LIBRARIES, "tensorboard", "no_such_library")
    with pytest.raises(ConfigError, match="no_such_library"):
        run(tmp_path / "home", TRACKED)
    assert not (tmp_path / "home").exists()
