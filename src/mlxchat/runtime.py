"""The machine: which backend MLX has on it, in what precision it computes, and its memory.

MLX is imported here and nowhere else: ``from mlxchat.runtime import mx, nn``. What has to happen
before that is in `mlxchat.blas`, whose import hook `mlxchat` has installed by then.
"""

import re
import time
from dataclasses import dataclass
from functools import cache

import psutil

from mlxchat.errors import BackendError, ConfigError, DeviceError, MemoryLimitError
from mlxchat.telemetry.events import Memory

__all__ = ["machine", "matmul_flops", "memory_use", "mx", "nn", "tree_flatten"]

try:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
except ImportError as error:
    raise BackendError(
        f"MLX has no backend on this machine ({error}).",
        'Install the extra cpu (any machine) or cuda (NVIDIA GPU): pip install -e ".[cpu]"',
    ) from error

GIB = 1024**3
LARGEST_CACHE = 4 * GIB
SPARED = 0.9  # share of the free memory
LARGEST_PRODUCT = 8192  # width of the matrices that measure speed

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
    """The device that MLX computes on."""

    backend: str  # "metal", "cuda" or "cpu"
    device: str  # the chip's name
    compute_dtype: mx.Dtype  # of activations; parameters and optimizer state stay float32
    peak_flops: float | None  # None for a chip that is not in the table
    memory: int  # bytes that the backend can address


@cache
def machine() -> Machine:
    """Return this machine.

    The compute dtype is bfloat16 on GPUs and float32 on CPUs, whose bfloat16 products are slow.
    """
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


def peak_flops(device: str) -> float | None:
    """Return the FLOP/s of the longest chip name that ``device`` starts with, None if unknown.

    >>> peak_flops("Apple M3 Pro") / 1e12
    7.4
    """
    names = [name for name in PEAK_FLOPS if re.match(rf"{name}\b", device)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


# How MLX begins or words what it raises when a device fails: Metal's and CUDA's calls, its own
# allocators and synchronization, and C++'s allocator. Its other errors blame the program.
_DEVICE_FAILURE = re.compile(
    r"(?i:\[(metal|cuda|malloc|event|fence))|\b(cuda|cublas|cudnn|nvrtc|cu[A-Z])\w*\W.*\bfailed"
    r"|std::bad_alloc"
)


def device_error(error: BaseException) -> DeviceError | None:
    """Return what MLX raised as a `DeviceError`; None if it does not say that its device failed.

    MLX raises RuntimeError and MemoryError, and so does Python for reasons of its own.

    >>> device_error(RuntimeError("Could not determine home directory.")) is None
    True
    """
    if type(error) not in (RuntimeError, MemoryError) or not _DEVICE_FAILURE.search(str(error)):
        return None
    return DeviceError(
        f"MLX's device failed: {str(error).rstrip('.')}.",
        "If it ran out of memory, use less of it: a smaller `memory_limit`, or `depth`. What was "
        "saved is kept.",
    )


def matmul_flops(seconds: float = 0.3, dtype: mx.Dtype | None = None) -> float:
    """Measure the FLOP/s of matrix products in about ``seconds``.

    The fastest product counts. Matrices grow as long as time allows: small ones do not fill a GPU.

    Args:
        seconds: how long to measure.
        dtype: of the matrices; by default the compute dtype.
    """
    begin, fastest, size = time.perf_counter(), 0.0, 512
    while True:
        a = mx.full((size, size), 1 / size, dtype or machine().compute_dtype)
        mx.eval(a @ a)  # the first product loads the kernel
        start = time.perf_counter()
        mx.eval(a @ a)
        end = time.perf_counter()
        fastest = max(fastest, 2 * size**3 / (end - start))
        pair, left = 2 * (end - start), seconds - (end - begin)
        if size < LARGEST_PRODUCT and 8 * pair < left:
            size *= 2
        elif pair > left:
            return fastest


def memory_use() -> Memory:
    """Return the memory in use now."""
    virtual = psutil.virtual_memory()
    return Memory(
        active=mx.get_active_memory(),
        peak=mx.get_peak_memory(),
        cache=mx.get_cache_memory(),
        machine_used=virtual.total - virtual.available,
        machine_total=virtual.total,
    )


def spare_memory() -> int:
    """Return the bytes that the machine can spare now.

    On a Mac these are what the system recommends for its GPU, elsewhere most of what is free.
    """
    here = machine()
    if here.backend == "metal":
        return here.memory
    free = mx.device_info().get("free_memory") if here.backend == "cuda" else None
    return int(SPARED * int(free or psutil.virtual_memory().available))


def cache_limit(limit: int | None = None, peak: int = 0) -> int:
    """Return the bytes that MLX may keep for reuse: at most 4 GiB or a quarter of the memory.

    MLX's own default has no bound.

    Args:
        limit: bytes that MLX may take in total.
        peak: the part of them that is in use at one time.
    """
    here = machine()
    most = min(here.memory // 4, LARGEST_CACHE)
    if limit is None:
        return most
    # The GPU allocators free what they keep when the limit is near; the CPU's does not.
    return max(0, min(most, limit - peak if here.backend == "cpu" else limit))


def bound_buffer_cache() -> None:
    """Let MLX keep at most `cache_limit` bytes for reuse."""
    mx.set_cache_limit(cache_limit())


def check_limits(limit: int, wired: int | None) -> None:
    """Check that the machine can have such limits.

    Args:
        limit: bytes that MLX may take in total.
        wired: bytes that may not be swapped out; None for no such limit.

    Raises:
        MemoryLimitError: the machine has less memory than ``limit``.
        ConfigError: the machine cannot wire so much memory, or none at all.
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
            f"`wired_limit` is {wired / GIB:,.1f} GiB; the system allows at most "
            f"{here.memory / GIB:,.1f} GiB.",
            "Use a smaller one, or raise the system's: sudo sysctl iogpu.wired_limit_mb=N",
        )


def hold_memory(limit: int, peak: int, wired: int | None) -> None:
    """Keep MLX within ``limit`` bytes.

    Args:
        limit: bytes in total, including those kept for reuse.
        peak: bytes expected to be in use at one time. Beyond it MLX waits for work under way
            before it starts more; what a single operation needs it takes nevertheless.
        wired: bytes that may not be swapped out; None leaves that as it is.

    Raises:
        MlxchatError: as for `check_limits`.
    """
    check_limits(limit, wired)
    mx.set_memory_limit(min(limit, peak))
    mx.set_cache_limit(cache_limit(limit, peak))
    if wired is not None:
        mx.set_wired_limit(wired)
