"""The questions to the machine, and measurements in processes that crash, hang or fail."""

import os
import signal
import stat
import sys
from pathlib import Path

import pytest
from support.macs import FakeMac

from mlxchat.doctor import probes
from mlxchat.doctor.host import Host, OutOfTime, Package, Power, failure
from mlxchat.errors import BackendError
from mlxchat.home import Home

METAL_WATCHDOG = (
    "libc++abi: terminating due to uncaught exception of type std::runtime_error: "
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
METAL_TIMEOUT = (
    "RuntimeError: [METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)"
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Home(tmp_path / "home"))


def python_is(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script in the place of Python, in whose process measurements run."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))


def test_every_measurement_has_its_function() -> None:
    """Their modules are read, not imported: a name that is missing would fail on a user's Mac."""
    folder = Path(probes.__file__).parent
    found = [probe for probe in vars(probes).values() if isinstance(probe, probes.Probe)]
    assert len(found) > 10
    for probe in found:
        text = (folder / f"{probe.module}.py").read_text("utf-8")
        assert f"\ndef {probe.function}(" in text
        assert f") -> {probe.numbers.__name__}:" in text
    assert len(found) == len({probe.function for probe in found})


def test_a_measurement_runs_in_a_process_of_its_own(host: Host) -> None:
    tried = host.measure(probes.LINKING, home=str(host.home.root))
    assert tried == probes.Attempt()
    assert host.home.root.exists()


def test_an_error_of_its_process_is_told_with_its_remedy(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX whose library is missing, say."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('no libmlx')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BackendError) as caught:
        host.measure(probes.DEVICE)
    assert "MLX has no backend on this machine (no libmlx). Install" in caught.value.problem


def test_the_same_is_measured_once(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_is(f"echo x >> {tmp_path}/calls; echo '{{}}'", tmp_path, monkeypatch)
    for home in ("a", "a", "b"):
        host.measure(probes.LINKING, home=home)
    host.measure(probes.LINKING, {"VARIABLE": "1"}, home="a")
    assert (tmp_path / "calls").read_text().count("x") == 3


def test_variables_are_those_of_its_process(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_is("""echo "{\\"refused\\": \\"$PLANTED\\"}" """, tmp_path, monkeypatch)
    assert host.measure(probes.LINKING, {"PLANTED": "set"}).refused == "set"


def test_numbers_that_are_none_arrive(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_is("""echo noise; echo '{"value": Infinity, "where": "loss"}'""", tmp_path, monkeypatch)
    assert host.measure(probes.ROTATION) == probes.Difference(value=float("inf"), where="loss")


def test_the_watchdog_s_crash_is_recognised(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_is(f"echo '{METAL_WATCHDOG}' >&2; kill -ABRT $$", tmp_path, monkeypatch)
    with pytest.raises(BackendError) as caught:
        host.measure(probes.LOAD)
    assert "Impacting Interactivity" in caught.value.problem
    assert "`supervise`" in caught.value.remedy and "display sleep" in caught.value.remedy


def test_failures_say_what_the_process_said() -> None:
    assert "GPU Timeout" in failure(1, f"Traceback\n{METAL_TIMEOUT}\n").problem
    assert (
        failure(1, "Traceback ...\nValueError: no\n").problem
        == "Its process failed: ValueError: no"
    )
    killed = failure(-signal.SIGKILL, "")
    assert killed.problem == "Its process was killed by SIGKILL: it printed no error"


def test_a_process_that_hangs_is_ended(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_is("exec sleep 60", tmp_path, monkeypatch)
    probe = probes.Probe("measured_device", "describe_device", probes.Device, 0.05)
    with pytest.raises(BackendError, match="did not finish within") as caught:
        host.measure(probe)
    assert "run the check again" in caught.value.remedy


def test_kernels_that_are_being_compiled_are_no_hang(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = host.home.kernels(host.package("mlx").version)
    kept.mkdir(parents=True)
    python_is(f"touch {kept}/kernel.ptx; exec sleep 60", tmp_path, monkeypatch)
    probe = probes.Probe("measured_device", "describe_device", probes.Device, 0.5)
    with pytest.raises(OutOfTime, match=r"kernels were being compiled \(1\)"):
        host.measure(probe)


def test_there_is_no_time_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python_is("exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr("mlxchat.doctor.host.LEAST_SECONDS", 0.04)
    now = 0.0
    host = Host(Home(tmp_path), until=0.05, timer=lambda: now)
    with pytest.raises(OutOfTime):  # it may take longer than what is left, and does
        host.measure(probes.LOAD)
    now = 0.02  # less is left than its process takes to start
    with pytest.raises(OutOfTime):
        host.measure(probes.LOAD)


def test_mlx_that_does_not_load_is_no_device(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python_is(f"echo x >> {tmp_path}/calls; exit 1", tmp_path, monkeypatch)
    assert host.device() is None and host.device() is None
    assert (tmp_path / "calls").read_text().count("x") == 1


def test_the_system_answers(host: Host, tmp_path: Path) -> None:
    assert host.answer("echo", "yes") == "yes"
    assert host.answer("false") is None
    assert host.answer("no-such-program") is None
    assert host.system() in ("Linux", "Darwin")
    assert host.python() == sys.version_info[:3]
    assert host.package("no-such-package") is None
    mlx = host.package("mlx")
    assert isinstance(mlx, Package) and mlx.tags
    assert isinstance(host.power(), Power)
    assert host.free_disk() > 0
    assert host.memory().total >= host.memory().free > 0
    system = host.file_system()
    assert tmp_path.resolve().is_relative_to(system.attached_to) and system.kind != "unknown"


def test_a_mac_is_held_awake_as_runs_hold_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxchat.doctor.host.AWAKE_SECONDS", 0.001)
    assert host.held_awake() is False, "this is no Mac"
    caffeinate = FakeMac(monkeypatch, {"sysctl.proc_translated": 1}).caffeinate(tmp_path)
    assert host.sysctl("sysctl.proc_translated") == 1
    pmset = tmp_path / "pmset"
    assert host.held_awake() is None, "there is no pmset"
    for said, held in (("pid 7(caffeinate): PreventUserIdleSystemSleep", True), ("none", False)):
        pmset.write_text(f"#!/bin/sh\necho '{said}'\n")
        pmset.chmod(0o755)
        assert host.held_awake() is held
    assert caffeinate.starts and not caffeinate.runs()
