"""Each check on a healthy machine, and on machines at fault: one fault for each, planted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.planted_host import (
    CUDA,
    GIB,
    HEALTHY,
    METAL,
    ONE_PACE,
    PLENTY,
    PlantedHost,
    attention,
    planted_mac,
)

from mlxchat.doctor import probes
from mlxchat.doctor.check import Check
from mlxchat.doctor.examination import CHECKS, finding_of, judge
from mlxchat.doctor.host import Host, OutOfTime, Package, Power
from mlxchat.doctor.storage import cloud
from mlxchat.errors import BackendError

ALL = {check.name: check for checks in CHECKS.values() for check in checks}
NOT_FOR_LINUX_CPUS = {"macOS", "awake", "watchdog", "NCCL", "wired memory"}
NOT_FOR_MACS = {"BLAS", "NCCL"}


def cuda(root: Path, **device: object) -> Host:
    """A healthy machine with an NVIDIA GPU."""
    packages = {"mlx": Package("0.32.4", ()), "mlx-cuda-13": Package("0.32.4", ())}
    measured = {
        "describe_device": CUDA.model_copy(update=device),
        "time_attention": attention(0.01, 0.02),
    }
    return PlantedHost(root, measured, packages=packages, has_nvidia_gpu=True)


def choice(sound: bool) -> probes.FastestWay:
    fused = "1 ms" if sound else "failed: no kernel"
    answer = f"{'fused' if sound else 'plain'} (plain 2 ms, fused {fused})"
    return probes.FastestWay(question="norm of 8 rows", answer=answer, sound=sound)


def linux(measured: dict[str, object] | None = None, **said: object) -> Callable[[Path], Host]:
    return lambda root: PlantedHost(root, measured, **said)


def mac(measured: dict[str, object] | None = None, **said: object) -> Callable[[Path], Host]:
    return lambda root: planted_mac(root, measured, **said)


def changed(function: str, **numbers: object) -> dict[str, object]:
    return {function: HEALTHY[function].model_copy(update=numbers)}


def test_a_healthy_machine_is_healthy(tmp_path: Path) -> None:
    for host, absent in (
        (PlantedHost(tmp_path), NOT_FOR_LINUX_CPUS),
        (planted_mac(Path("/Users/ada/.cache/mlxchat")), NOT_FOR_MACS),
        (cuda(tmp_path), {"macOS", "awake", "BLAS", "wired memory"}),
    ):
        verdicts = {name: judge(check, host) for name, check in ALL.items()}
        assert {name for name, v in verdicts.items() if v.outcome == "not here"} == absent
        assert [(n, v) for n, v in verdicts.items() if v.outcome in ("warning", "failed")] == []


SLOW = probes.Pace(seconds=0.2, peak=GIB)
NO_DEVICE = {"describe_device": BackendError("MLX has no backend on this machine.")}
FULL = PLENTY._replace(free=GIB // 4)
NEARLY_FULL = PLENTY._replace(free=GIB)

FAULTS = [
    ("python", linux(python=(3, 9, 6)), "failed", "3.9.6"),
    ("python", linux(python=(3, 15, 0)), "warning", "wheels"),
    ("architecture", mac(sysctl={"sysctl.proc_translated": 1}), "failed", "Rosetta"),
    ("architecture", mac(architecture="x86_64"), "failed", "Intel"),
    ("macOS", mac(answers={"sw_vers -productVersion": "13.7"}), "failed", "0.29.3"),
    ("macOS", mac(answers={"sw_vers -productVersion": None}), "warning", "sw_vers"),
    ("MLX", linux(packages={}), "failed", "not installed"),
    ("MLX", linux(packages={"mlx": Package("0.32.4", ())}), "failed", "not installed"),
    (
        "MLX",
        linux(packages={"mlx": Package("0.31.0", ()), "mlx-cpu": Package("0.31.0", ())}),
        "failed",
        "newer MLX",
    ),
    (
        "MLX",
        linux(packages={"mlx": Package("0.33.0", ()), "mlx-cpu": Package("0.32.4", ())}),
        "failed",
        "mlx-cpu 0.32.4",
    ),
    ("MLX", mac(answers={"sw_vers -productVersion": "26.1"}), "warning", "M5"),
    ("MLX", linux(NO_DEVICE), "failed", "no backend"),
    ("memory", linux(memory=FULL), "failed", "quickstart"),
    ("memory", linux(memory=NEARLY_FULL), "warning", "small models"),
    ("memory", mac(memory=PLENTY._replace(pressure="critical")), "warning", "pressure critical"),
    ("power", linux(power=Power(battery=True, mains=False)), "warning", "battery"),
    ("awake", mac(held_awake=None), "warning", "does not report"),
    ("awake", mac(held_awake=False), "warning", "does not run"),
    ("compiler", linux(answers={"g++ -dumpversion": None}), "warning", "g++"),
    ("compiler", linux(changed("compile_kernel", difference=0.1)), "failed", "a wrong result"),
    ("compiler", linux(changed("compile_kernel", seconds=30.0)), "warning", "compiled"),
    ("BLAS", linux(changed("describe_device", openblas="")), "failed", "10 to 30 times"),
    ("home", linux(changed("try_write", refused="EACCES: permission denied")), "failed", "EACCES"),
    ("home", linux(file_system="nfs4"), "warning", "network"),
    ("home", linux(file_system="exfat"), "warning", "journal"),
    ("home", linux(file_system="tmpfs"), "warning", "restart"),
    ("space", linux(free_disk=GIB // 2), "failed", "nothing can be downloaded"),
    ("space", linux(free_disk=2 * GIB), "warning", "2.1 GB"),
    ("sync", linux(changed("try_sync", refused="EIO: input/output error")), "failed", "EIO"),
    (
        "sync",
        mac(changed("try_sync", refused="ENOTSUP: not supported", instead="fsync")),
        "warning",
        "F_FULLFSYNC was refused",
    ),
    ("sync", linux(changed("try_sync", seconds=3.0)), "warning", "slow"),
    ("lock", linux(changed("try_lock", refused="ENOLCK: no locks")), "warning", "ENOLCK"),
    ("rename", linux(changed("try_rename", renamed=False)), "failed", "lost its file"),
    ("link", linux(changed("try_link", refused="EPERM: not permitted")), "warning", "EPERM"),
    ("GPU", linux(has_nvidia_gpu=True), "failed", "NVIDIA"),
    ("GPU", mac({"describe_device": HEALTHY["describe_device"]}), "failed", "Metal"),
    (
        "GPU",
        mac({"describe_device": METAL.model_copy(update={"name": "Apple Paravirtual device"})}),
        "warning",
        "virtual machine",
    ),
    (
        "GPU",
        mac({"describe_device": METAL.model_copy(update={"memory": 2 * GIB})}),
        "warning",
        "small models",
    ),
    (
        "fastest variants",
        linux(changed("describe_device", fastest_ways=(choice(True), choice(False)))),
        "warning",
        "norm of 8 rows: plain (plain 2 ms, fused failed: no kernel)",
    ),
    (
        "fastest variants",
        linux(changed("describe_device", fastest_ways=(choice(True),))),
        "ok",
        "norm",
    ),
    ("watchdog", mac(changed("work_without_pause", longest=3.0)), "warning", "watchdog"),
    ("watchdog", mac({"work_without_pause": BackendError("It was ended.")}), "failed", "ended"),
    ("NCCL", lambda root: cuda(root, nccl=False), "warning", "Several GPUs"),
    ("products", linux(changed("time_products", float32=4e9)), "warning", "BLAS"),
    ("products", mac(changed("time_products", bfloat16=50e9)), "warning", "2.0 times as fast"),
    ("products", mac(changed("time_products", float16=150e9)), "ok", "`dtype=float16`"),
    ("rounding", linux(changed("round_products", bfloat16=0.5)), "failed", "bfloat16 are wrong"),
    ("rounding", mac(changed("round_products", float32=5e-4)), "ok", "TF32"),
    ("rounding", mac(changed("round_products", float16=float("nan"))), "failed", "float16"),
    ("rotation", mac(changed("compare_rotation", value=0.1)), "failed", "forward"),
    ("gradients", mac(changed("compare_gradients", value=2e-3)), "failed", "the loss"),
    ("modern gradients", mac(changed("compare_gradients", value=2e-3)), "failed", "the loss"),
    ("attention", mac({"time_attention": attention(0.02, 0.01)}), "warning", "2.00 times"),
    (
        "attention",
        mac({"time_attention": attention(1, 1, difference=0.1)}),
        "failed",
        "relative error",
    ),
    ("decoding", mac(changed("compare_decoding", value=1.0)), "failed", "at position 1,030"),
    ("learning", linux(changed("take_steps", last_loss=6.9)), "failed", "updates"),
    ("learning", linux(changed("take_steps", last_loss=float("nan"))), "failed", "nan"),
    ("first step", linux(changed("take_steps", first_seconds=40.0)), "warning", "40.0 s"),
    ("memory limit", linux(changed("take_steps", held=SLOW)), "warning", "2.00 times as long held"),
    (
        "wired memory",
        mac(changed("take_steps", wired=SLOW, held=ONE_PACE)),
        "warning",
        "2.00 times as long wired",
    ),
]


@pytest.mark.parametrize(("name", "host", "outcome", "said"), FAULTS)
def test_a_planted_fault_is_found(
    name: str, host: Callable[[Path], Host], outcome: str, said: str, tmp_path: Path
) -> None:
    found = finding_of(ALL[name], "a topic", judge(ALL[name], host(tmp_path)), 0.0)
    assert found.outcome == outcome, found
    assert said in f"{found.value} {found.detail}"
    if found.needs_action:
        assert found.remedy
        assert found.commands == ALL[name].commands


def test_every_check_has_a_planted_fault() -> None:
    assert {name for name, _, outcome, _ in FAULTS if outcome != "ok"} == ALL.keys()
    assert len(ALL) == sum(map(len, CHECKS.values())), "two checks have one name"


@pytest.mark.parametrize("check", ALL.values(), ids=lambda check: check.name)
def test_a_check_says_what_it_is(check: Check) -> None:
    assert check.measures.endswith(".") and check.measures[0].isupper()
    assert check.limit and not check.limit.endswith(".")
    assert check.remedy.endswith((".", "g++"))


def test_without_mlx_the_rest_is_still_checked(tmp_path: Path) -> None:
    host = PlantedHost(tmp_path, NO_DEVICE)
    outcomes = {name: judge(check, host).outcome for name, check in ALL.items()}
    assert [name for name, outcome in outcomes.items() if outcome == "failed"] == ["MLX"]
    assert outcomes["rotation"] == outcomes["learning"] == "not here"
    assert outcomes["lock"] == outcomes["python"] == "ok"


def test_what_stops_a_check_is_a_verdict(tmp_path: Path) -> None:
    crash = BackendError("Its process was ended by SIGABRT.", "Restart it.")
    failed = judge(ALL["rotation"], PlantedHost(tmp_path, {"compare_rotation": crash}))
    assert (failed.outcome, failed.detail, failed.remedy) == (
        "failed",
        "Its process was ended by SIGABRT.",
        "Restart it.",
    )
    late = judge(
        ALL["rotation"], PlantedHost(tmp_path, {"compare_rotation": OutOfTime("It was late.")})
    )
    assert (late.outcome, late.value, late.detail) == ("warning", "not measured", "It was late.")
    gone = PermissionError(13, "Permission denied")
    denied = judge(ALL["sync"], PlantedHost(tmp_path, {"try_sync": gone}))
    assert (denied.outcome, denied.detail) == ("failed", "Permission denied.")


@pytest.mark.parametrize(
    ("path", "mac", "name"),
    [
        ("Library/Mobile Documents/com~apple~CloudDocs/models", True, "iCloud Drive"),
        ("Library/CloudStorage/Box/models", True, "a cloud drive"),
        ("Documents/models", True, "perhaps iCloud Drive"),
        ("Documents/models", False, ""),
        ("Dropbox/models", False, "Dropbox"),
        (".cache/mlxchat", True, ""),
    ],
)
def test_clouds_are_known_by_their_folders(path: str, mac: bool, name: str) -> None:
    assert cloud(Path("/Users/ada") / path, Path("/Users/ada"), mac) == name


def test_a_home_in_icloud_is_doubtful() -> None:
    host = planted_mac(Path("/Users/ada/Library/Mobile Documents/com~apple~CloudDocs/models"))
    found = judge(ALL["home"], host)
    assert found.outcome == "warning" and "iCloud Drive" in found.detail
