"""The machine: which backend of MLX it has, in what precision it computes, what it can spare.

MLX is imported here and nowhere else: ``from mlxchat.runtime import mx, nn``. On Linux the CPU
wheel of MLX brings the reference BLAS, 3 to 7 GFLOP/s where OpenBLAS gives hundreds on the same two
cores; an OpenBLAS whose symbols carry no prefix, loaded globally before MLX, takes its place.
"""

import ctypes
import os
import platform
import re
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import psutil

from mlxchat.errors import BackendError, ConfigError, MemoryLimitError
from mlxchat.home import Home
from mlxchat.telemetry.events import Memory

__all__ = ["machine", "matmul_flops", "memory_use", "mx", "nn", "tree_flatten"]

GIB = 1024**3
LARGEST_CACHE = 4 * GIB
SPARED = 0.9  # of the memory that nobody uses
LARGEST_PRODUCT = 8192  # width of a matrix whose products measure speed
OPENBLAS = "cmeel.prefix/lib/libopenblas.so.0"  # in cmeel-openblas
SYSTEM_OPENBLAS = "libopenblas.so.0"


def _load_gfortran(libraries: Path) -> None:
    """Load the Fortran runtime that OpenBLAS asks for from the copy inside MLX's own wheel.

    The wheel renames it (``libgfortran-<hash>.so.5``), so the linker does not recognise it as the
    ``libgfortran.so.5`` that OpenBLAS needs; a copy in memory gets its original name back.
    """
    for library in sorted(libraries.glob("libquadmath-*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    for library in sorted(libraries.glob("libgfortran-*")):
        renamed = library.name.encode() + b"\0"
        original = b"libgfortran.so.5".ljust(len(renamed), b"\0")
        descriptor = os.memfd_create("libgfortran.so.5")
        with os.fdopen(descriptor, "wb", closefd=False) as memory:
            memory.write(library.read_bytes().replace(renamed, original))
        ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)


def _openblas(cpuinfo: Path) -> str:
    """The library to load: that of the extra, or the system's where the processor cannot run it.

    For x86-64 it is built for AVX-512 alone.
    """
    if platform.machine() == "x86_64" and "avx512f" not in cpuinfo.read_text("ascii", "replace"):
        return SYSTEM_OPENBLAS
    return str(distribution("cmeel-openblas").locate_file(OPENBLAS))


def _preload_openblas() -> None:
    """Put OpenBLAS in front of the reference BLAS; warn where there is none."""
    try:
        libraries = Path(str(distribution("mlx-cpu").locate_file("mlx_cpu.libs")))
    except PackageNotFoundError:
        return  # another backend, with a BLAS of its own, or none at all
    try:
        openblas = _openblas(Path("/proc/cpuinfo"))
        try:
            ctypes.CDLL(openblas, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            _load_gfortran(libraries)
            ctypes.CDLL(openblas, mode=ctypes.RTLD_GLOBAL)
    except (OSError, PackageNotFoundError) as error:
        warnings.warn(
            f"OpenBLAS is not available ({error}): training will be 10 to 30 times slower. "
            'The extra cpu brings it, pip install -e ".[cpu]"; for a processor without AVX-512 '
            "your system does, as in apt install libopenblas0",
            RuntimeWarning,
            stacklevel=2,
        )


if sys.platform == "linux":
    _preload_openblas()
    # What CUDA may have under way at a time, which is memory that cannot be used again meanwhile:
    # by default a gigabyte for each of ten parts of a graph.
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "100")
    # Kernels that CUDA compiles, for up to minutes: by default MLX keeps them in /tmp, which a
    # restart of the machine empties.
    os.environ.setdefault("MLX_PTX_CACHE_DIR", str(Home.from_environment().kernels(version("mlx"))))

try:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
except ImportError as error:
    raise BackendError(
        f"MLX has no backend on this machine ({error}).",
        'Install the extra cpu (any machine) or cuda (NVIDIA GPU): pip install -e ".[cpu]"',
    ) from error

# Peak matrix throughput in FLOP/s. Apple: the float32 ALUs of the chip's largest GPU, which also
# run bfloat16 (Hugging Face's hardware table). NVIDIA: dense bfloat16, from the data sheets.
PEAK_FLOPS = {
    "Apple M1": 2.6e12,
    "Apple M1 Pro": 5.2e12,
    "Apple M1 Max": 10.4e12,
    "Apple M1 Ultra": 21e12,
    "Apple M2": 3.6e12,
    "Apple M2 Pro": 6.8e12,
    "Apple M2 Max": 13.5e12,
    "Apple M2 Ultra": 27.2e12,
    "Apple M3": 4.1e12,
    "Apple M3 Pro": 7.4e12,
    "Apple M3 Max": 14.2e12,
    "Apple M3 Ultra": 28.4e12,
    "Apple M4": 4.6e12,
    "Apple M4 Pro": 9.2e12,
    "Apple M4 Max": 18.4e12,
    "Apple M5": 5.7e12,
    "Apple M5 Pro": 11.4e12,
    "Apple M5 Max": 22.8e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
}


@dataclass(frozen=True)
class Machine:
    """What computes here."""

    backend: str  # "metal", "cuda" or "cpu"
    device: str  # the chip's name
    compute_dtype: mx.Dtype  # of activations; parameters and optimizer stay float32
    peak_flops: float | None  # None where the table has no such chip
    memory: int  # bytes the backend can address


def peak_flops(device: str) -> float | None:
    """FLOP/s of the longest chip name that ``device`` starts with, None where unknown."""
    names = [name for name in PEAK_FLOPS if re.match(rf"{name}\b", device)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


@cache
def machine() -> Machine:
    """This machine; bfloat16 on GPUs, float32 on CPUs, whose half-precision products are slow."""
    total = psutil.virtual_memory().total
    if mx.default_device() == mx.Device(mx.cpu):
        return Machine("cpu", _processor_name(), mx.float32, None, total)
    info = mx.device_info()
    backend = "metal" if mx.metal.is_available() else "cuda"
    device = str(info.get("device_name", backend))
    memory = int(info.get("max_recommended_working_set_size") or info.get("total_memory") or total)
    return Machine(backend, device, mx.bfloat16, peak_flops(device), memory)


def _processor_name() -> str:
    return f"{mx.device_info().get('device_name', 'CPU')}, {psutil.cpu_count()} cores"


def spare_memory() -> int:
    """Bytes that the machine can spare now: on a Mac what the system recommends for its GPU,
    elsewhere most of what is free.
    """
    here = machine()
    if here.backend == "metal":
        return here.memory
    free = mx.device_info().get("free_memory") if here.backend == "cuda" else None
    return int(SPARED * int(free or psutil.virtual_memory().available))


def cache_limit(limit: int | None = None, peak: int = 0) -> int:
    """Bytes that MLX may keep for reuse: a quarter of memory and 4 GiB at most; its default is no
    bound.

    Args:
        limit: bytes that MLX may take in all.
        peak: bytes of them that are in use at one time.
    """
    here = machine()
    most = min(here.memory // 4, LARGEST_CACHE)
    if limit is None:
        return most
    # The allocators of GPUs let go of what they keep when the limit is near; that of CPUs does not.
    return max(0, min(most, limit - peak if here.backend == "cpu" else limit))


def bound_buffer_cache() -> None:
    """Let MLX keep at most `cache_limit` bytes for reuse."""
    mx.set_cache_limit(cache_limit())


def check_limits(limit: int, wired: int | None) -> None:
    """Raise where the machine cannot have such limits.

    Args:
        limit: bytes that MLX may take in all.
        wired: bytes that may not be swapped out; None where nothing is asked for.

    Raises:
        MlxchatError: the machine has less memory, or none that can be wired.
    """
    here = machine()
    total = here.memory if here.backend == "cuda" else psutil.virtual_memory().total
    if limit > total:
        raise MemoryLimitError(
            f"`memory_limit` is {limit / GIB:,.1f} GiB; this machine has {total / GIB:,.1f} GiB.",
            "Use a smaller `memory_limit`, or leave it out.",
        )
    if wired is not None and here.backend != "metal":
        raise ConfigError(
            f"`wired_limit` is for Macs: MLX wires no memory on {here.device}.", "Leave it out."
        )
    if wired is not None and wired > here.memory:
        raise ConfigError(
            f"`wired_limit` is {wired / GIB:,.1f} GiB; the system lets "
            f"{here.memory / GIB:,.1f} GiB be wired.",
            "Use a smaller one, or raise the system's: sudo sysctl iogpu.wired_limit_mb=N",
        )


def hold_memory(limit: int, peak: int, wired: int | None) -> None:
    """Keep MLX within ``limit`` bytes.

    Args:
        limit: bytes to take in all, what is kept for reuse included.
        peak: bytes expected to be in use at one time. Beyond, MLX waits for work under way rather
            than compute ahead, for which it would take what it can get; what is needed at one time
            it takes nevertheless.
        wired: bytes that may not be swapped out; None leaves that as it is.

    Raises:
        MlxchatError: as of `check_limits`.
    """
    check_limits(limit, wired)
    mx.set_memory_limit(min(limit, peak))
    mx.set_cache_limit(cache_limit(limit, peak))
    if wired is not None:
        mx.set_wired_limit(wired)


def matmul_flops(seconds: float = 0.3) -> float:
    """FLOP/s of a matrix product in the compute dtype, measured in about so much time.

    The fastest counts. Matrices become wider as long as time allows: small ones do not fill a GPU.
    """
    begun, fastest, size = time.perf_counter(), 0.0, 512
    while True:
        a = mx.full((size, size), 1 / size, machine().compute_dtype)
        mx.eval(a @ a)  # the first one loads the kernel
        started = time.perf_counter()
        mx.eval(a @ a)
        ended = time.perf_counter()
        fastest = max(fastest, 2 * size**3 / (ended - started))
        pair, left = 2 * (ended - started), seconds - (ended - begun)
        if size < LARGEST_PRODUCT and 8 * pair < left:
            size *= 2
        elif pair > left:
            return fastest


def memory_use() -> Memory:
    """Memory as it is now."""
    virtual = psutil.virtual_memory()
    return Memory(
        active=mx.get_active_memory(),
        peak=mx.get_peak_memory(),
        cache=mx.get_cache_memory(),
        machine_used=virtual.total - virtual.available,
        machine_total=virtual.total,
    )
