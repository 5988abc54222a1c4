"""Operations of the disk really tried, and a disk that refuses them."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from support.planted_host import PlantedHost

from mlxchat.doctor.check import Check
from mlxchat.doctor.examination import judge
from mlxchat.doctor.storage import STORAGE_CHECKS

CHECKS = {check.name: check for check in STORAGE_CHECKS}
TRIED = ["sync", "lock", "rename", "link"]


def really(name: str, root: Path) -> tuple[str, str]:
    """The outcome of a check that really tries the disk, with what it said."""
    check: Check = CHECKS[name]
    functions = ("try_write", "try_sync", "try_lock", "try_rename", "try_link")
    verdict = judge(check, PlantedHost(root, dict.fromkeys(functions, "real")))
    return verdict.outcome, f"{verdict.value} {verdict.detail}"


def refuse(code: int) -> object:
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_this_disk_does_it_all_and_nothing_is_left_behind(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    assert [really(name, home)[0] for name in TRIED] == ["ok"] * 4
    assert list(home.iterdir()) == []


def test_a_disk_that_flushes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    outcome, said = really("sync", tmp_path)
    assert outcome == "failed" and "EIO" in said


def test_a_mac_s_network_drive_refuses_the_full_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse(errno.ENOTSUP))
    outcome, said = really("sync", tmp_path)
    assert outcome == "warning" and said.startswith("by fsync") and "power cut" in said


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    outcome, said = really("lock", tmp_path)
    assert outcome == "warning" and said.startswith("by a file") and "ENOLCK" in said
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))  # not for want of locks
    outcome, said = really("lock", tmp_path)
    assert outcome == "warning" and said.startswith("none") and "EIO" in said


def test_locks_that_lock_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    outcome, said = really("lock", tmp_path)
    assert outcome == "warning" and "twice" in said


def test_renaming_that_leaves_the_old_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(Path, "rename", lambda old, new: shutil.copytree(old, new))
    outcome, said = really("rename", tmp_path)
    assert outcome == "failed" and "still exists" in said


def test_renaming_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", refuse(errno.EXDEV))
    assert really("rename", tmp_path)[0] == "failed"


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    outcome, said = really("link", tmp_path)
    assert outcome == "warning" and "EPERM" in said


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    outcome, said = really("home", tmp_path / "file")
    assert outcome == "failed" and "EEXIST" in said
    assert [really(name, tmp_path / "file") for name in TRIED] == [
        ("not here", "the home is not writable ")
    ] * 4
