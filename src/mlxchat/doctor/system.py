"""Checks of the system: Python, macOS, MLX's wheel, memory, power, a compiler and a BLAS."""

from mlxchat.counts import part_of_size
from mlxchat.doctor.check import (
    COMPUTING,
    EVERYTHING,
    TRAINING,
    Check,
    Verdict,
    doubtful,
    good,
    on_a_cpu,
    on_a_mac,
    with_mlx,
    wrong,
)
from mlxchat.doctor.host import Host
from mlxchat.doctor.probes import DEVICE, KERNEL

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 14)  # those that all packages have wheels for
OLDEST_MLX = (0, 32, 4)
OLDEST_MACOS = 14
NEURAL_MACOS = 26  # whose wheel uses the neural accelerators of M5
BACKENDS = ("mlx-metal", "mlx-cuda-13", "mlx-cuda-12", "mlx-cpu")
ENOUGH_MEMORY, LEAST_MEMORY = 2 * 10**9, 500 * 10**6
SLOW_COMPILING = 10.0  # seconds for a small kernel
SAME_RESULT = 1e-5  # relative difference of float32 results

NATIVE_PYTHON = "uv python install 3.12, or the installer of python.org"


def _python(host: Host) -> Verdict:
    version = host.python()
    value = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return wrong(value, "mlxchat needs a newer version of Python.")
    if version[:2] > NEWEST_PYTHON:
        return doubtful(value, "Not every package has wheels for such a new version of Python.")
    return good(value)


def _architecture(host: Host) -> Verdict:
    value = host.architecture()
    if host.system() != "Darwin":
        return good(value)
    if host.sysctl("sysctl.proc_translated") == 1:
        return wrong(
            f"{value}, under Rosetta", "This Python was built for Intel and runs under Rosetta."
        )
    if value != "arm64":
        return wrong(value, "MLX has no wheels for Macs with Intel processors.")
    return good(f"{value}, native")


def _macos(host: Host) -> Verdict:
    version = host.answer("sw_vers", "-productVersion") or "unknown"
    major = version.partition(".")[0]
    if not major.isdecimal():
        return doubtful(version, "sw_vers did not report the version.")
    if int(major) < OLDEST_MACOS:
        return wrong(version, "MLX has had no wheels for it since 0.29.3.")
    return good(version)


def _mlx(host: Host) -> Verdict:
    mlx = host.package("mlx")
    found = {name: package for name in BACKENDS if (package := host.package(name))}
    if mlx is None or not found:
        return wrong("not installed", "MLX, or its backend for this machine, is not installed.")
    value = ", ".join([f"mlx {mlx.version}", *found])
    if _numbers(mlx.version) < OLDEST_MLX:
        remedy = 'Update it: pip install -U mlx, or, on a CPU: pip install -U "mlx[cpu]"'
        return wrong(value, "mlxchat needs a newer MLX.", remedy)
    other = {name: package.version for name, package in found.items()}
    if any(version != mlx.version for version in other.values()):
        parts = ", ".join(f"{name} {version}" for name, version in other.items())
        return wrong(value, f"mlx and its backend have different versions: {parts}.")
    host.measure(DEVICE)
    return _wheel(host, value)


def _wheel(host: Host, value: str) -> Verdict:
    """Say whether the wheel on a Mac is the one for its macOS."""
    metal = host.package("mlx-metal")
    version = host.answer("sw_vers", "-productVersion") if host.system() == "Darwin" else None
    if metal is None or version is None:
        return good(value)
    tags = ", ".join(metal.tags)
    new = version.partition(".")[0]
    if new.isdecimal() and int(new) >= NEURAL_MACOS and f"macosx_{NEURAL_MACOS}" not in tags:
        return doubtful(
            f"{value} ({tags})",
            f"This is the wheel for an older macOS. On an M5, the one for macOS {NEURAL_MACOS} is "
            "much faster, since it uses the neural accelerators.",
            "Update pip: pip install -U pip. Then uninstall mlx and mlx-metal and install them "
            "again.",
        )
    return good(f"{value} ({tags})")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _memory(host: Host) -> Verdict:
    memory = host.memory()
    value = f"{part_of_size(memory.free, memory.total)} free"
    if memory.pressure not in (None, "normal"):
        return doubtful(
            f"{value}, pressure {memory.pressure}",
            "The system reports that memory is short, so training would have to wait for the disk.",
        )
    if memory.free < LEAST_MEMORY:
        return wrong(value, "Not even quickstart fits into this.")
    if memory.free < ENOUGH_MEMORY:
        return doubtful(value, "Only small models fit into this.")
    return good(value)


def _power(host: Host) -> Verdict:
    power = host.power()
    if power.battery and not power.mains:
        return doubtful(
            "battery",
            "Chips are slower on battery power, and a Mac then goes to sleep whatever it is "
            "running.",
        )
    return good("mains" if power.battery else "no battery")


def _awake(host: Host) -> Verdict:
    held = host.held_awake()
    if held is None:
        return doubtful("unknown", "pmset, which comes with macOS, does not report it.")
    if not held:
        return doubtful(
            "not kept awake", "caffeinate, which comes with macOS, does not run or has no effect."
        )
    return good("kept awake")


def _compiler(host: Host) -> Verdict:
    device = host.device()
    if device and device.backend == "cpu" and host.answer("g++", "-dumpversion") is None:
        return doubtful(
            "no g++",
            "Without it, MLX runs compiled functions one operation at a time, which is slower.",
        )
    kernel = host.measure(KERNEL)
    value = f"{kernel.seconds:.2f} s"
    if kernel.difference > SAME_RESULT:
        return wrong(f"off by {kernel.difference:.1e}", "A compiled kernel gives a wrong result.")
    if kernel.seconds > SLOW_COMPILING:
        return doubtful(
            value, "About sixty kernels have to be compiled before the first training step."
        )
    return good(value)


def _blas(host: Host) -> Verdict:
    device = host.device()
    assert device is not None
    if not device.openblas:
        return wrong(
            "the reference BLAS", "Matrix products take 10 to 30 times longer than with OpenBLAS."
        )
    return good(device.openblas)


SYSTEM_CHECKS = (
    Check(
        name="python",
        measures="The version of Python.",
        limit="3.10 to 3.14",
        remedy=f"Install another Python: {NATIVE_PYTHON}. Then create a new virtual environment.",
        commands=EVERYTHING,
        examine=_python,
    ),
    Check(
        name="architecture",
        measures=(
            "The architecture this Python was built for. A Mac with Apple silicon needs arm64, "
            "not Rosetta."
        ),
        limit="arm64 on a Mac, native",
        remedy=(
            f"Install a native Python: {NATIVE_PYTHON}. This must print arm64: python3 -c 'import "
            "platform; print(platform.machine())'."
        ),
        commands=EVERYTHING,
        examine=_architecture,
    ),
    Check(
        name="macOS",
        measures="The version of macOS.",
        limit=f"{OLDEST_MACOS} or later",
        remedy=f"Update to macOS {OLDEST_MACOS} or later.",
        commands=EVERYTHING,
        examine=_macos,
        absent=on_a_mac,
    ),
    Check(
        name="MLX",
        measures="Whether MLX loads, and the versions of MLX and its backend.",
        limit=f"{'.'.join(map(str, OLDEST_MLX))} or later, all the same version",
        remedy=(
            'Reinstall it with its backend: pip install -U -e ".[cpu]" (an NVIDIA GPU: ".[cuda]").'
        ),
        commands=EVERYTHING,
        examine=_mlx,
    ),
    Check(
        name="memory",
        measures="The machine's free memory, and whether the system reports that memory is short.",
        limit=f"at least {ENOUGH_MEMORY // 10**9} GB",
        remedy=(
            "Close other programs, or train a smaller model. `memory_limit` limits a run's memory."
        ),
        commands=COMPUTING,
        examine=_memory,
    ),
    Check(
        name="power",
        measures="The machine's power source.",
        limit="mains, or no battery",
        remedy="Plug it in before a long run.",
        commands=TRAINING,
        examine=_power,
    ),
    Check(
        name="awake",
        measures="Whether caffeinate keeps this Mac from sleeping while nobody is using it.",
        limit="kept awake",
        remedy="Before a long run, turn sleep off in System Settings (Energy, Battery).",
        commands=TRAINING,
        examine=_awake,
        absent=on_a_mac,
    ),
    Check(
        name="compiler",
        measures=(
            "How long a new kernel takes to compile, and whether its result is right. On CPUs, "
            "MLX compiles with g++."
        ),
        limit=f"at most {SLOW_COMPILING:g} s, off by at most {SAME_RESULT:g}",
        remedy="On Linux, install a compiler: sudo apt install g++",
        commands=COMPUTING,
        examine=_compiler,
        absent=with_mlx,
    ),
    Check(
        name="BLAS",
        measures="The library that MLX uses to multiply matrices on Linux CPUs.",
        limit="OpenBLAS",
        remedy=(
            'Install it: pip install "mlxchat[cpu]", or, on a processor without AVX-512, through '
            "your system: sudo apt install libopenblas0."
        ),
        commands=COMPUTING,
        examine=_blas,
        absent=on_a_cpu,
    ),
)
