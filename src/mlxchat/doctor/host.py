"""The machine that is checked.

All questions to the system, and all measurements, go through `Host`, so that a test can plant an
answer: that of a Mac on Linux, or that of a faulty machine.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import psutil

from mlxchat import system
from mlxchat.device_failures import explain
from mlxchat.disk import free_space, nearest_existing
from mlxchat.doctor.probes import DEVICE, Device, Measurement, Numbers, Probe
from mlxchat.errors import BackendError, ConfigError, MlxchatError
from mlxchat.home import Home, expanded
from mlxchat.json_text import parse_json
from mlxchat.system import own_command
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Timer

LEAST_SECONDS = 2.0  # a measurement is not begun when less is left: its process has to start
QUESTION_SECONDS = 5.0  # the longest that a program of the system may take to answer
AWAKE_TRIES, AWAKE_SECONDS = 10, 0.1  # caffeinate takes a moment
PACKAGE = __name__.rpartition(".")[0]


class OutOfTime(Exception):  # noqa: N818  (no error: the next time it may well succeed)
    """There was not enough time for a measurement; the message says why."""


class Package(NamedTuple):
    """An installed package: its version, and what its wheel was built for."""

    version: str
    tags: tuple[str, ...]  # such as "cp312-cp312-macosx_26_0_arm64"


class FreeMemory(NamedTuple):
    """The machine's free and total memory, in bytes."""

    free: int
    total: int
    pressure: system.Pressure | None  # None if the system does not report it


class FileSystem(NamedTuple):
    """A file system, and the folder that it is attached to."""

    kind: str  # as the system names it: "apfs", "ext4", "nfs4"
    attached_to: Path


class Power(NamedTuple):
    """The machine's power supply."""

    battery: bool  # whether there is one
    mains: bool  # whether it is plugged in


class Host:
    """The machine that is examined.

    Args:
        home: where mlxchat keeps its files.
        until: when the last measurement has to end, by ``timer``.
        timer: returns seconds since any origin.
    """

    def __init__(
        self,
        home: Home,
        until: float = float("inf"),
        timer: Timer = SYSTEM_CLOCK.seconds,
    ) -> None:
        self.home = home
        self._until, self._timer = until, timer
        self._measured: dict[str, Measurement] = {}

    # ==== The system ====

    def system(self) -> str:
        """Return the name of the system: ``Darwin``, ``Linux``."""
        return platform.system()

    def sysctl(self, name: str) -> int | None:
        """Return a number that a Mac's kernel keeps; None if it has none of that name."""
        return system.sysctl(name)

    def held_awake(self) -> bool | None:
        """Return whether `system.kept_awake` keeps a Mac awake; None if the Mac does not say."""
        with system.kept_awake() as begun:
            for _ in range(AWAKE_TRIES if begun else 0):
                if (held := self.answer("pmset", "-g", "assertions")) is None:
                    return None
                if "caffeinate" in held:
                    return True
                time.sleep(AWAKE_SECONDS)
        return False

    def architecture(self) -> str:
        """Return what this Python was built for: ``arm64``, ``x86_64``, ``aarch64``."""
        return platform.machine()

    def python(self) -> tuple[int, int, int]:
        """Return the version of Python."""
        return sys.version_info[:3]

    def package(self, name: str) -> Package | None:
        """Return an installed package; None if it is not installed."""
        try:
            found = distribution(name)
        except PackageNotFoundError:
            return None
        lines = (found.read_text("WHEEL") or "").splitlines()
        tags = (line.partition(":")[2].strip() for line in lines if line.startswith("Tag:"))
        return Package(found.version, tuple(tags))

    def answer(self, *command: str) -> str | None:
        """Return what a program of the system prints; None if it is missing, fails or hangs."""
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    def memory(self) -> FreeMemory:
        """Return the machine's free and total memory, and its pressure."""
        total = psutil.virtual_memory().total
        return FreeMemory(system.free_memory(), total, system.pressure())

    def power(self) -> Power:
        """Return the power supply; a machine that does not report one has no battery."""
        found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        return Power(found is not None, found is None or bool(found.power_plugged))

    def has_nvidia_gpu(self) -> bool:
        """Return whether the driver of an NVIDIA GPU is loaded."""
        return Path("/proc/driver/nvidia/version").exists()

    # ==== The disk ====

    def user_home(self) -> Path | None:
        """Return the user's home folder; None if nothing says where it is."""
        try:
            return expanded("~")
        except ConfigError:
            return None

    def free_disk(self) -> int:
        """Return the bytes that are free on the disk of mlxchat's home."""
        return free_space(self.home.root)

    def file_system(self) -> FileSystem:
        """Return the file system of mlxchat's home."""
        place = nearest_existing(self.home.root).resolve()
        found = FileSystem("unknown", Path("/"))
        for partition in psutil.disk_partitions(all=True):
            attached = Path(partition.mountpoint)
            if place.is_relative_to(attached) and attached.is_relative_to(found.attached_to):
                found = FileSystem(partition.fstype, attached)
        return found

    # ==== Measurements ====

    def device(self) -> Device | None:
        """Return the device that MLX computes on; None if MLX does not load."""
        return self._device

    @cached_property
    def _device(self) -> Device | None:
        try:
            return self.measure(DEVICE)
        except MlxchatError:
            return None

    def measure(
        self,
        probe: Probe[Numbers],
        environment: Mapping[str, str] | None = None,
        **arguments: object,
    ) -> Numbers:
        """Return a measurement made in a process of its own; the same one is made only once.

        Args:
            probe: the measurement.
            environment: variables to set for its process.
            arguments: the arguments of its function.

        Raises:
            BackendError: its process failed, crashed or took too long.
            OutOfTime: there was no time left, or kernels were still being compiled.
        """
        key = repr((probe.function, environment, arguments))
        if key not in self._measured:
            self._measured[key] = self._measure(probe, environment or {}, arguments)
        measured = self._measured[key]
        assert isinstance(measured, probe.numbers)
        return measured

    def _measure(
        self, probe: Probe[Numbers], environment: Mapping[str, str], arguments: dict[str, object]
    ) -> Numbers:
        left = self._until - self._timer()
        if left < LEAST_SECONDS:
            raise OutOfTime("There was no time left for it.")
        module = f"{PACKAGE}.{probe.module}"
        command = own_command(f"{PACKAGE}.child", module, probe.function)
        seconds, kernels = min(probe.seconds, left), self._compiled_kernels()
        try:
            done = subprocess.run(
                command,
                input=json.dumps(arguments),
                capture_output=True,
                text=True,
                timeout=seconds,
                env={**os.environ, **environment},
            )
        except subprocess.TimeoutExpired as error:
            if more := self._compiled_kernels() - kernels:
                raise OutOfTime(
                    f"It was stopped after {seconds:.0f} seconds, while kernels were being "
                    f"compiled ({more}). They are kept for the next run."
                ) from error
            if seconds < probe.seconds:
                raise OutOfTime(f"It was stopped after {seconds:.0f} seconds.") from error
            raise BackendError(
                f"It did not finish within {seconds:.0f} seconds.",
                "Close other programs that keep the machine busy, and run the check again. If the "
                "result is the same, the device is stuck: restart the machine.",
            ) from error
        if done.returncode:
            raise failure(done.returncode, done.stderr)
        return probe.numbers.model_validate(parse_json(done.stdout.splitlines()[-1]))

    def _compiled_kernels(self) -> int:
        """Return how many CUDA kernels are kept; compiling them can take minutes the first time."""
        mlx = self.package("mlx")
        folder = self.home.kernels(mlx.version) if mlx else None
        return len(list(folder.iterdir())) if folder and folder.is_dir() else 0


def failure(code: int, errors: str) -> BackendError:
    """Return the error of a process that failed.

    Args:
        code: its exit code; negative for the number of a signal.
        errors: what it wrote to standard error.
    """
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in lines:
        if failed := explain(line):
            return failed
    last = lines[-1] if lines else "it printed no error"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
    return BackendError(f"Its process {how}: {last}")
