"""What a Mac is asked, on a stand-in of its C library; what is asked elsewhere."""

import ctypes
import os
import platform
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.macs import FakeMac

from mlxchat import system
from mlxchat.monitor.machine import HostMemory, host_memory
from mlxchat.telemetry.events import Memory

GIB = 2**30


def test_a_mac_says_how_much_memory_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeMac(monkeypatch, {"kern.memorystatus_level": 49})
    total = psutil.virtual_memory().total
    assert system.free_memory() == total * 49 // 100
    mac.numbers["kern.memorystatus_level"] = 0  # it has never been that
    assert system.free_memory() <= total
    del mac.numbers["kern.memorystatus_level"]
    assert system.sysctl("kern.memorystatus_level") is None
    assert 0 < system.free_memory() <= total


@pytest.mark.parametrize(
    ("level", "said"), [(1, "normal"), (2, "warning"), (4, "critical"), (3, None), (None, None)]
)
def test_a_mac_says_whether_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, level: int | None, said: str | None
) -> None:
    numbers = {} if level is None else {"kern.memorystatus_vm_pressure_level": level}
    FakeMac(monkeypatch, numbers)
    assert system.pressure() == said
    memory = host_memory()
    assert memory.mac and memory.pressure == said


def test_a_mac_is_full_when_it_says_so_and_not_at_four_fifths() -> None:
    for used, pressure, full in (
        (95, "normal", False),
        (30, "warning", True),
        (30, "critical", True),
        (81, None, True),  # it did not say
    ):
        assert HostMemory("mac", used, 100, 0, 0, pressure, mac=True).full == full
        assert Memory(1, 2, 3, used, 100, pressure).machine_full == full
    assert HostMemory("linux", 81, 100, 0, 0, "normal").full  # what Linux reports comes late
    assert not HostMemory("linux", 79, 100, 0, 0, "warning").full


def test_a_mac_keeps_its_identity_when_its_name_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = FakeMac(monkeypatch, {})
    before = system.identity()
    monkeypatch.setattr(socket, "gethostname", lambda: "another-network")
    assert system.identity() == before == str(mac.uuid)
    mac.uuid = None
    assert system.identity() == "another-network"
    monkeypatch.setattr(sys, "platform", "linux")
    assert system.identity() == "another-network"


def test_linux_is_asked_nothing_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5, total=9))
    assert system.sysctl("kern.memorystatus_level") is None
    assert system.free_memory() == 5
    with system.kept_awake() as awake:
        assert not awake


def test_a_mac_is_kept_awake_until_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mac = FakeMac(monkeypatch, {})
    program = mac.caffeinate(tmp_path)
    with system.kept_awake() as awake:
        assert awake
        assert program.await_start() == ["-i", "-s", "-w", str(os.getpid())]
        assert program.runs()
    assert not program.runs()
    with pytest.raises(KeyboardInterrupt), system.kept_awake():
        program.await_start(2)
        assert program.runs()
        raise KeyboardInterrupt
    assert not program.runs()


def test_a_mac_without_caffeinate_trains_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeMac(monkeypatch, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with system.kept_awake() as awake:
        assert not awake
    (tmp_path / "caffeinate").touch()  # it may not be run
    with system.kept_awake() as awake:
        assert not awake


@pytest.mark.parametrize(
    ("distribution", "kernel", "said"),
    [
        (
            {"NAME": "Ubuntu", "VERSION_ID": "24.04", "PRETTY_NAME": "the box of Ada"},
            "6.8.0-57-generic",
            "Ubuntu 24.04, Linux 6.8.0, arm",
        ),
        ({"NAME": "Arch Linux"}, "7.1.2-adas-own", "Arch Linux, Linux 7.1.2, arm"),
        ({"NAME": "x\x1b[2J" + "y" * 99}, "", f"x[2J{'y' * 56}, Linux, arm"),
        (None, "strange", "Linux, arm"),
    ],
)
def test_linux_is_named_with_its_versions_and_without_anybodys_words(
    monkeypatch: pytest.MonkeyPatch, distribution: dict[str, str] | None, kernel: str, said: str
) -> None:
    def release() -> dict[str, str]:
        if distribution is None:
            raise FileNotFoundError
        return distribution

    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in (("system", "Linux"), ("release", kernel), ("machine", "arm")):
        monkeypatch.setattr(platform, name, lambda value=value: value)
    monkeypatch.setattr(platform, "freedesktop_os_release", release)
    assert system.system_version() == said


def test_a_mac_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMac(monkeypatch, {})
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert system.system_version() == "macOS 26.1, arm64"


def test_python_has_a_version() -> None:
    assert system.python_version().split(".")[:2] == [str(part) for part in sys.version_info[:2]]
