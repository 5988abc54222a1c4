"""A machine with the answers that a test plants, for `mlxchat doctor`."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from mlxchat.doctor import probes
from mlxchat.doctor.host import FileSystem, FreeMemory, Host, Package, Power
from mlxchat.doctor.probes import Measurement, Probe
from mlxchat.home import Home

GIB = 2**30
ONE_PACE = probes.Pace(seconds=0.1, peak=GIB)
HEALTHY: dict[str, Measurement] = {  # what is measured where all is well, by the probe's function
    "try_write": probes.Attempt(),
    "try_sync": probes.Attempt(seconds=0.01),
    "try_lock": probes.Attempt(),
    "try_rename": probes.Names(renamed=True, case_sensitive=True),
    "try_link": probes.Attempt(),
    "describe_device": probes.Device(
        backend="cpu",
        name="A processor, 2 cores",
        compute_dtype="float32",
        memory=16 * GIB,
        largest_buffer=0,
        buffers=0,
        nccl=False,
        openblas="OpenBLAS 0.3.31, 2 threads",
    ),
    "compile_kernel": probes.FirstKernel(seconds=0.5, difference=1e-7),
    "work_without_pause": probes.Load(seconds=4, longest=0.2),
    "time_products": probes.Products(float32=100e9, float16=100e9, bfloat16=100e9),
    "round_products": probes.Roundings(float32=1e-7, float16=2e-4, bfloat16=2e-3),
    "compare_rotation": probes.Difference(value=1e-7, where="forward pass"),
    "compare_gradients": probes.Difference(value=1e-6, where="the loss"),
    "time_attention": probes.Backward(seconds=0.01, peak=GIB, difference=1e-4, dtype="float32"),
    "compare_decoding": probes.Difference(value=1e-6, where="at position 1,030"),
    "take_steps": probes.Steps(
        first_seconds=1,
        count=40,
        tokens=1024,
        first_loss=7,
        last_loss=0.1,
        free=ONE_PACE,
        held=ONE_PACE,
        wired=None,
    ),
}
METAL = probes.Device(
    backend="metal",
    name="Apple M3 Pro",
    compute_dtype="bfloat16",
    memory=27 * GIB,
    largest_buffer=20 * GIB,
    buffers=499_000,
    nccl=False,
    openblas="",
)
CUDA = probes.Device(
    backend="cuda",
    name="NVIDIA H200",
    compute_dtype="bfloat16",
    memory=140 * GIB,
    largest_buffer=0,
    buffers=0,
    nccl=True,
    openblas="",
)
PLENTY = FreeMemory(12 * GIB, 16 * GIB, "normal")
Planted = Measurement | Exception | Callable[[Mapping[str, str]], Measurement]


class PlantedHost(Host):
    """A healthy machine: Linux with MLX on its CPU, except for the planted answers.

    Args:
        root: mlxchat's home on it.
        measured: what is measured, by the probe's function: the numbers, an error, or a function
            of the environment; "real" measures in this process.
        answers: what programs of the system print, by their command lines.
        said: what the other methods return, by their names.
    """

    def __init__(
        self,
        root: Path,
        measured: Mapping[str, Planted | str] | None = None,
        answers: Mapping[str, str | None] | None = None,
        **said: object,
    ) -> None:
        super().__init__(Home(root))
        self._planted = {**HEALTHY, **(measured or {})}
        self._answers = {"g++ -dumpversion": "14", **(answers or {})}
        self._said = said

    def system(self) -> str:
        return str(self._said.get("system", "Linux"))

    def sysctl(self, name: str) -> int | None:
        return self._said.get("sysctl", {}).get(name)

    def held_awake(self) -> bool | None:
        return self._said.get("held_awake", True)

    def architecture(self) -> str:
        return str(self._said.get("architecture", "x86_64"))

    def python(self) -> tuple[int, int, int]:
        return self._said.get("python", (3, 12, 3))

    def package(self, name: str) -> Package | None:
        installed = {"mlx": Package("0.32.4", ()), "mlx-cpu": Package("0.32.4", ())}
        return self._said.get("packages", installed).get(name)

    def answer(self, *command: str) -> str | None:
        return self._answers.get(" ".join(command))

    def memory(self) -> FreeMemory:
        return self._said.get("memory", PLENTY)

    def power(self) -> Power:
        return self._said.get("power", Power(battery=False, mains=True))

    def has_nvidia_gpu(self) -> bool:
        return bool(self._said.get("has_nvidia_gpu", False))

    def user_home(self) -> Path:
        return Path("/Users/ada" if self.system() == "Darwin" else "/home/ada")

    def free_disk(self) -> int:
        return self._said.get("free_disk", 100 * GIB)

    def file_system(self) -> FileSystem:
        return FileSystem(str(self._said.get("file_system", "ext4")), Path("/"))

    def measure(
        self,
        probe: Probe,
        environment: Mapping[str, str] | None = None,
        **arguments: object,
    ) -> Measurement:
        planted = self._planted[probe.function]
        if isinstance(planted, Exception):
            raise planted
        if planted == "real":
            return getattr(import_module(f"mlxchat.doctor.{probe.module}"), probe.function)(
                **arguments
            )
        return planted(environment or {}) if callable(planted) else planted


def planted_mac(root: Path, measured: Mapping[str, Planted | str] | None = None, **said) -> Host:
    """A healthy Mac: M3 Pro, macOS 15."""
    steps = HEALTHY["take_steps"].model_copy(update={"wired": ONE_PACE})
    packages = {
        "mlx": Package("0.32.4", ("cp312-cp312-macosx_15_0_arm64",)),
        "mlx-metal": Package("0.32.4", ("py3-none-macosx_15_0_arm64",)),
    }
    answers = {
        "sw_vers -productVersion": "15.6.1",
        **said.pop("answers", {}),
    }
    changed = {
        "describe_device": METAL,
        "take_steps": steps,
        "time_attention": attention(fused=0.01, unfused=0.012),
        **(measured or {}),
    }
    mac = {"system": "Darwin", "architecture": "arm64", "packages": packages, "file_system": "apfs"}
    return PlantedHost(root, changed, answers, **{**mac, **said})


def attention(fused: float, unfused: float, difference: float = 1e-3) -> Planted:
    """Attention in bfloat16 that takes these seconds with and without its fused kernel."""

    def measured(environment: Mapping[str, str]) -> Measurement:
        seconds = unfused if environment else fused
        return probes.Backward(seconds=seconds, peak=GIB, difference=difference, dtype="bfloat16")

    return measured
