"""What a Mac is asked, on a stand-in of its C library; what is asked elsewhere."""

import ctypes
import os
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
