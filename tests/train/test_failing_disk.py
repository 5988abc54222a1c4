"""A disk that is full, fails or is missing, wherever a run writes except in a save's own files."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import put_step
from support.disk_faults import Faults, Killed
from support.runs import CONFIG, QUIET, diverging, logged, run, run_folder, shards

from mlxchat.checkpoint import files, store, trainer
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.log import JsonLines

SHORT = CONFIG.model_copy(update={"eval_every": 0, "sample_every": 0})
FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*_: object) -> None:
    raise FULL


def test_a_log_that_fails_from_the_first_event_ends_the_run(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", full)
        with pytest.raises(MlxchatError, match="stopped there; no checkpoint was saved"):
            run(prepared, SHORT)
    assert store.steps(run_folder(prepared)) == []
    run(prepared, SHORT, stop_at=3)
    (saved,) = store.steps(run_folder(prepared))
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", full)
        with pytest.raises(MlxchatError, match=f"stopped there; step {saved} was saved"):
            run(prepared, SHORT)
    assert store.steps(run_folder(prepared)) == [saved]
    run(prepared, SHORT)
    assert logged(prepared, "step") == list(range(1, 13))


def test_a_log_that_cannot_be_appended_to_is_kept(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prepared, SHORT, stop_at=6)
    log = Home(prepared).log("run")
    before = log.read_bytes()

    def some(*_: object) -> Iterator[bytes]:
        yield before[:100]
        raise FULL

    with monkeypatch.context() as patched:
        patched.setattr("mlxchat.telemetry.log._lines_until", some)
        with pytest.raises(MlxchatError, match=r"The log .* cannot be written: No space") as raised:
            run(prepared, SHORT)
    assert str(log) in raised.value.problem and "repeat the command" in raised.value.remedy
    assert log.read_bytes() == before
    run(prepared, SHORT)
    assert logged(prepared, "step") == list(range(1, 13))


def test_the_error_of_a_full_disk_at_the_first_save_has_the_size_of_a_step(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "write_state", full)
        with pytest.raises(MlxchatError, match=r"No space .* [MGT]B are free\)") as raised:
            run(prepared, SHORT)
    assert "earlier" not in raised.value.remedy
    run(prepared, SHORT)
    taken = store.size(store.directory(run_folder(prepared), 12))
    said = raised.value.problem.partition("a step takes ")[2].partition(",")[0]
    number, unit = said.split()
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(taken, rel=0.2)


def test_a_nan_loss_is_reported_even_if_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = QUIET.model_copy(update={"data_dir": shards(tmp_path / "data", 0, 1)})
    mkdir = Path.mkdir

    def making(path: Path, *arguments: object, **keywords: object) -> None:
        if ".good" in str(path):
            raise FULL
        mkdir(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "mkdir", making)
    with pytest.raises(MlxchatError) as raised:
        run(tmp_path, config, compile=diverging(8, [float("nan"), 1.0, 0.1]))
    assert "The loss is nan in step 8, with the data read up to" in raised.value.problem
    assert "could not be copied: " in raised.value.problem
    assert "No space left on device" in raised.value.problem
    assert "smaller learning rates" in raised.value.remedy
    assert store.steps(run_folder(tmp_path)) == [3, 6]


@pytest.mark.parametrize("kind", ["once", "full", "killed"])
def test_setting_a_step_aside_survives_any_failure(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(20):
        source = tmp_path / f"{kind}{at}"
        put_step(source, 4)
        faults = Faults(at, kind)
        with monkeypatch.context() as patched:
            faults.patch(patched)
            try:
                store.keep_aside(source, 4)
            except MlxchatError as error:
                assert "Step 4 could not be saved" in error.problem
            except Killed:
                assert kind == "killed"
        kept = store.keep_aside(source, 4)
        assert store.steps(kept.parent) == store.steps(source) == [4]
        for step in (kept, store.directory(source, 4)):
            for name in files.files_with_checksums(step):
                files.verify_file(step / name)
        if faults.done <= at:
            return
    raise AssertionError(faults.done)


@pytest.mark.parametrize(
    ("what", "fresh"),
    [("run", False), ("run", True), ("newest step", False), ("log", False), ("log", True)],
)
def test_a_disconnected_disk_is_named_and_changes_nothing(
    what: str, fresh: bool, prepared: Path
) -> None:
    run(prepared, SHORT, stop_at=6)
    newest = store.latest(run_folder(prepared))
    assert newest is not None
    log = Home(prepared).log("run")
    before = log.read_bytes()
    moved = {"run": run_folder(prepared), "newest step": newest, "log": log.parent}[what]
    disk = prepared / "disk"
    disk.mkdir()
    shutil.move(moved, disk / "moved")
    moved.symlink_to(disk / "moved")
    disk.rename(prepared / "unplugged")
    with pytest.raises(MlxchatError) as raised:
        run(prepared, SHORT, fresh=fresh)
    assert f"{moved} is a link to {disk / 'moved'}, which does not exist" in raised.value.problem
    assert "Connect its disk" in raised.value.remedy
    (prepared / "unplugged").rename(disk)
    assert store.steps(run_folder(prepared)) == [3, 6]
    assert log.read_bytes() == before
    run(prepared, SHORT)
    assert logged(prepared, "step") == list(range(1, 13))
