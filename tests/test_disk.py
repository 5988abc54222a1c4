"""Locks, new folders, syncs and files of any kind, also on disks that lack some of it."""

import errno
import fcntl
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.strange_files import STRANGE, put_strange

from mlxchat.checkpoint.layout import open_unchecked
from mlxchat.disk import (
    DiskUse,
    disk_use,
    new_folder,
    open_regular,
    read_regular,
    replacing,
    storing,
    sync,
)
from mlxchat.errors import ConfigError, DiskError, LockedError
from mlxchat.home import Home
from mlxchat.locks import Lock, in_use

ELSEWHERE = "name another one"
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}


def refusing(code: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def taken(path: Path, folder: bool = False) -> Lock:
    lock = Lock.take(path, folder)
    assert lock is not None
    return lock


@pytest.fixture(params=["system", *NO_LOCKS])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's locks, and disks that refuse them."""
    if request.param != "system":
        monkeypatch.setattr(fcntl, "flock", refusing(request.param))


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize("folder", [False, True])
def test_one_at_a_time_has_a_lock(folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "place"
    with taken(path, folder) as lock:
        assert lock.is_held and lock.renew()
        assert path.is_dir() == folder
        assert Lock.take(path, folder) is None
    with taken(path, folder):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("locks")
def test_a_lock_whose_file_is_deleted_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "place"
    with taken(path) as lock:
        for file in tmp_path.iterdir():
            file.unlink()
        assert not lock.is_held
        assert lock.renew() and lock.is_held
        assert Lock.take(path) is None
    taken(path).release()


@pytest.mark.usefixtures("locks")
def test_a_lock_that_another_took_when_its_file_was_deleted_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "place"
    with taken(path) as lock:
        for file in tmp_path.iterdir():
            file.unlink()
        with taken(path) as other:
            assert not lock.renew()
            lock.release()
            assert other.is_held and Lock.take(path) is None
        lock.release()


def test_another_failure_of_a_lock_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        Lock.take(tmp_path / "place")


def ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_only_the_file_of_a_dead_process_of_this_host_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    path, file, dead = tmp_path / "place", tmp_path / ".place.held", ended_process()
    for alive in (f"{dead} elsewhere", f"{os.getpid()} {socket.gethostname()}", "", "what"):
        file.write_text(f"{alive}\n")
        assert Lock.take(path) is None
    file.write_text(f"{dead} elsewhere\n")
    error = in_use(path, "It is used.", "Wait.")
    assert str(file) in error.remedy and "'elsewhere'" in error.remedy and str(dead) in error.remedy
    file.write_text(f"{dead} not-{socket.gethostname()}\n")
    assert Lock.take(path) is None
    file.write_text(f"{dead} {socket.gethostname()}\n")
    with taken(path):
        assert file.read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert not file.exists()
    assert in_use(path, "It is used.", "Wait.").remedy == "Wait."


def test_a_mac_knows_its_own_file_when_its_name_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    path, file = tmp_path / "place", tmp_path / ".place.held"
    monkeypatch.setattr("mlxchat.locks.identity", lambda: "hardware")
    monkeypatch.setattr(socket, "gethostname", lambda: "at-home")
    with taken(path):
        held = file.read_text()
    assert held == f"{os.getpid()} at-home hardware\n"
    monkeypatch.setattr(socket, "gethostname", lambda: "on-the-train")
    for machine, replaced in (("other", False), ("hardware", True)):
        file.write_text(f"{ended_process()} at-home {machine}\n")
        lock = Lock.take(path)
        assert (lock is not None) == replaced
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY])
def test_what_a_disk_cannot_sync_is_not_synced(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)  # a Mac's
    monkeypatch.setattr(fcntl, "fcntl", refusing(code))
    monkeypatch.setattr(os, "fsync", synced.append)
    sync(tmp_path)
    assert len(synced) == 1
    monkeypatch.setattr(os, "fsync", refusing(code))
    sync(tmp_path)
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: synced.clear())
    sync(tmp_path)
    assert synced == []


def test_a_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    for code in (errno.EIO, errno.ENOSPC):
        monkeypatch.setattr(fcntl, "fcntl", refusing(code))
        with pytest.raises(OSError, match=os.strerror(code)):
            sync(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    with replacing(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]
    for unnamed in (tmp_path, Path()):
        with pytest.raises(OSError), replacing(unnamed) as partial:
            partial.write_text("")


def test_only_a_full_disk_is_said_to_need_room() -> None:
    remedies = {errno.ENOSPC: "Free some disk space", errno.EACCES: "Check its permissions"}
    for code, remedy in remedies.items():
        with pytest.raises(DiskError) as caught, storing("It"):
            refusing(code)()
        assert caught.value.remedy == f"{remedy}, or choose another folder with MLXCHAT_HOME."


@pytest.mark.usefixtures("locks")
def test_two_that_make_one_folder_never_mix(tmp_path: Path) -> None:
    folder, both, ends = tmp_path / "made", threading.Barrier(2), list[str]()

    def make(name: str) -> None:
        both.wait()
        try:
            with new_folder(folder, ELSEWHERE) as unfinished:
                for part in "abc":
                    (unfinished / part).write_text(name)
                    ends.append(name)
        except (LockedError, DiskError) as error:
            assert "Another process is writing" in str(error) or "nothing was written" in str(error)

    threads = [threading.Thread(target=make, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == [folder]
    assert [(folder / part).read_text() for part in "abc"] == ends[:3]
    assert ends in (["one"] * 3, ["two"] * 3)


def test_a_folder_whose_place_was_deleted_is_not_mixed_with_a_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with pytest.raises(DiskError), new_folder(folder, ELSEWHERE) as first:
        (first / "a").write_text("first")
        (first / "a").unlink()
        first.rmdir()
        first.parent.rmdir()
        with new_folder(folder, ELSEWHERE) as second:
            (second / "a").write_text("second")
            with pytest.raises(FileNotFoundError):
                (first / "b").write_text("first")
    assert (folder / "a").read_text() == "second" and not (folder / "b").exists()


def test_an_interruption_leaves_nothing_and_a_kill_nothing_that_looks_whole(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with pytest.raises(KeyboardInterrupt), new_folder(folder, ELSEWHERE):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / ".made.unfinished" / "0123"
    left.mkdir(parents=True)  # as of a process that was killed, and of an earlier version
    (left.parent / "model.safetensors").touch()
    with new_folder(folder, ELSEWHERE) as unfinished:
        (unfinished / "a").touch()
    assert list(tmp_path.iterdir()) == [folder]
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_folder_is_replaced_once_the_new_one_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), new_folder(folder, ELSEWHERE, replace=True):
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"]
    with new_folder(folder, ELSEWHERE, replace=True) as unfinished:
        (unfinished / "new").touch()
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_was_being_replaced_gets_its_name_back(tmp_path: Path) -> None:
    folder, before = tmp_path / "made", tmp_path / ".made.before"
    before.mkdir()
    (before / "old").touch()
    with pytest.raises(DiskError, match="nothing was written"), new_folder(folder, ELSEWHERE):
        pass
    assert [path.name for path in folder.iterdir()] == ["old"]
    folder.rename(before)
    with new_folder(folder, ELSEWHERE, replace=True) as unfinished:
        assert folder.exists()
        (unfinished / "new").touch()
    before.mkdir()  # as of a process that was killed before it removed it
    with new_folder(folder, ELSEWHERE, replace=True) as unfinished:
        (unfinished / "newer").touch()
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "kept").touch()
        (tmp_path / "file").touch()
        with (
            pytest.raises(DiskError, match="nothing was written") as caught,
            new_folder(tmp_path / name, ELSEWHERE),
        ):
            pass
        assert caught.value.remedy == "Name another one."
    with pytest.raises(DiskError), new_folder(tmp_path / "late", ELSEWHERE):
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "kept").touch()
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["kept"]


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    (tmp_path / "link").symlink_to(path)
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="More than 4 bytes"):
        read_regular(path, 4)


@pytest.mark.parametrize("kind", STRANGE)
def test_anything_else_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    put_strange(kind, path)
    with pytest.raises(OSError) as raised:
        read_regular(path, 1000)
    assert raised.value.strerror and str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


@pytest.mark.parametrize("use", [Home, open_unchecked])
def test_a_path_that_mlx_cannot_open_is_refused(use: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError, match="is not valid UTF-8"):
        use(Path(os.fsdecode(b"/caf\xe9")))


# Space


def test_a_file_counts_once_and_what_stays_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(bytes(100))
    (folder / "b").hardlink_to(folder / "a")
    assert disk_use([folder]) == DiskUse(100) and disk_use([folder]).freed == 100
    assert disk_use([folder / "a"]) == DiskUse(100, shared=100)
    assert disk_use([folder / "a"], beside=[folder / "b"]) == DiskUse(100)
    (folder / "above").symlink_to(tmp_path)
    (folder / "c").symlink_to(folder / "a")
    assert disk_use([folder]) == DiskUse(100)  # each is here as well
    assert disk_use([tmp_path / "missing"]) == DiskUse(0)


def test_what_links_within_a_folder_lead_to_is_not_freed_with_it(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (elsewhere / "below").mkdir(parents=True)
    folder.mkdir()
    for path, size in ((elsewhere / "below" / "x", 10), (elsewhere / "y", 5), (folder / "z", 1)):
        path.write_bytes(bytes(size))
    (folder / "step").symlink_to(elsewhere)
    (folder / "gone").symlink_to(tmp_path / "nothing")
    assert disk_use([folder]) == DiskUse(16, linked=15) and disk_use([folder]).freed == 1
    (tmp_path / "run").symlink_to(folder)
    assert disk_use([tmp_path / "run"]) == DiskUse(16, linked=15)  # a run's folder goes itself
    (tmp_path / "file").symlink_to(elsewhere / "y")
    assert disk_use([tmp_path / "file"]) == DiskUse(5, linked=5)
    (folder / "y").hardlink_to(elsewhere / "y")
    assert disk_use([folder]) == DiskUse(16, shared=5, linked=10)
