"""The machine: which backend MLX has on it, in what precision it computes, and its memory.

MLX is imported here and nowhere else: ``from mlxchat.runtime import mx, nn``. What has to happen
before that is in `mlxchat.blas`, whose import hook `mlxchat` has installed by then.
"""

import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import psutil

from mlxchat import openblas, system
from mlxchat.counts import counted, round_size
from mlxchat.errors import BackendError, ConfigError, MemoryLimitError
from mlxchat.telemetry.events import Memory

# Of MLX, for other modules to import from here.
__all__ = ["mx", "nn", "tree_flatten", "tree_unflatten"]

try:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten, tree_unflatten
except ImportError as error:
    raise BackendError(
        f"MLX has no backend on this machine ({error}).",
        'Install the extra cpu (any machine) or cuda (NVIDIA GPUs): pip install "mlxchat[cpu]"',
    ) from error

GIB = 1024**3
LARGEST_CACHE = 4 * GIB
SPARED = 0.9  # share of the free memory
ROOM_SHARE, ROOM = 0.1, GIB // 2  # above the expected peak, for what MLX keeps and computes ahead
WIRED_ROOM = 4 * 10**9  # bytes over the expected peak
LARGEST_PRODUCT = 8192  # width of the matrices that measure speed
WORTH_IT = 1.1  # float32 takes twice the memory, so it must be this many times as fast as bfloat16

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

Wired = int | Literal["auto"]  # bytes, or as many as training is expected to need

# Peak matrix throughput in FLOP/s. Apple: the float32 ALUs of the chip's largest GPU, which also
# run bfloat16 (Hugging Face's hardware table); from the M5 on its accelerators can be faster. That
# of the M6 is not on record. NVIDIA: dense bfloat16, from the data sheets.
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
    "Apple M5 Ultra": 45.6e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
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

    The compute dtype is float32 on CPUs, whose bfloat16 products are slow. It is bfloat16 on GPUs
    that are known to compute with it; on others a product of matrices decides.
    """
    total = psutil.virtual_memory().total
    if mx.default_device() == mx.Device(mx.cpu):
        return Machine("cpu", _processor_name(), mx.float32, None, total)
    info = mx.device_info()
    backend = "metal" if mx.metal.is_available() else "cuda"
    device = str(info.get("device_name", backend))
    memory = int(info.get("max_recommended_working_set_size") or info.get("total_memory") or total)
    return Machine(backend, device, _gpu_dtype(device), peak_flops(device), memory)


def _gpu_dtype(device: str) -> mx.Dtype:
    """Return bfloat16, or float32 where that is clearly faster: M1 and M2 only emulate bfloat16."""
    if peak_flops(device) and not re.match(r"Apple M[12]\b", device):
        return mx.bfloat16
    speeds = {dtype: matmul_flops(0.05, dtype) for dtype in (mx.bfloat16, mx.float32)}
    worth_it = speeds[mx.float32] > WORTH_IT * speeds[mx.bfloat16]
    return mx.float32 if worth_it else mx.bfloat16


def compute_dtype(name: str = "auto") -> mx.Dtype:
    """Return the dtype of activations that a setting names, such as bfloat16, or auto.

    Raises:
        ConfigError: there is no such dtype.

    >>> compute_dtype("float32")
    mlx.core.float32
    """
    if name == "auto":
        return machine().compute_dtype
    if name not in DTYPES:
        raise ConfigError(f"There is no `dtype` {name!r}.", f"Use {', '.join(DTYPES)} or auto.")
    return DTYPES[name]


def _processor_name() -> str:
    return (
        f"{mx.device_info().get('device_name', 'CPU')}, {counted(psutil.cpu_count() or 1, 'cores')}"
    )


def peak_flops(device: str) -> float | None:
    """Return the peak FLOP/s of a device; None if its chip is not in the table.

    Apple's chips are looked up by their full names. NVIDIA adds the memory or the form of the board
    to the chip's name.

    >>> peak_flops("Apple M3 Pro") / 1e12
    7.4
    >>> peak_flops("NVIDIA H100 80GB HBM3") / 1e12
    989.0
    """
    if device.startswith("Apple"):
        return PEAK_FLOPS.get(device)
    names = [name for name in PEAK_FLOPS if re.match(rf"{name}\b", device)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def matmul_flops(seconds: float = 0.3, dtype: mx.Dtype | None = None) -> float:
    """Measure the FLOP/s of matrix products in about ``seconds``.

    The fastest product counts. Matrices grow as long as time allows: small ones do not fill a GPU.

    On a CPU whose cores other programs use too, the threads of a product wait for each other, and
    it is many times slower than one on a single thread. Training is not, so both are measured
    there, which takes twice as long.

    Args:
        seconds: how long to measure.
        dtype: of the matrices; by default the compute dtype.
    """
    fastest, threads = _fastest_product(seconds, dtype), openblas.threads()
    if machine().backend != "cpu" or threads <= 1:
        return fastest
    openblas.set_threads(1)
    try:
        return max(fastest, _fastest_product(seconds, dtype))
    finally:
        openblas.set_threads(threads)


def _fastest_product(seconds: float, dtype: mx.Dtype | None) -> float:
    """Return the FLOP/s of the fastest matrix product in about ``seconds``."""
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


@cache
def product_flops(dtype: mx.Dtype) -> float | None:
    """Return `matmul_flops` of a GPU, measured when this is first called; None on CPUs.

    Not all chips compute with the units that their data sheet counts. On CPUs the loader's threads
    slow the products of a run, so the speed of a lone product would mislead.

    Args:
        dtype: of the matrices.
    """
    if machine().backend == "cpu":
        return None
    measured = matmul_flops(dtype=dtype)
    mx.clear_cache()
    mx.reset_peak_memory()
    return measured


def memory_use() -> Memory:
    """Return the memory in use now."""
    virtual = psutil.virtual_memory()
    return Memory(
        active=mx.get_active_memory(),
        peak=mx.get_peak_memory(),
        cache=mx.get_cache_memory(),
        machine_used=virtual.total - virtual.available,
        machine_total=virtual.total,
        mac_pressure=system.pressure() if system.on_mac() else None,
    )


def spare_memory() -> int:
    """Return the bytes that the machine can spare now: most of what is free.

    On a Mac, what the system recommends for its GPU is a bound, which does not fall when other
    programs take memory.
    """
    here = machine()
    free = mx.device_info().get("free_memory") if here.backend == "cuda" else None
    return min(here.memory, int(SPARED * int(free or system.free_memory())))


def memory_room(limit: int, peak: int) -> int:
    """Return the bytes that MLX is held to, those that it keeps for reuse included.

    A GPU gets room over the expected peak: held to the peak itself, its allocator would give back
    at each peak what it keeps, only to ask the system for it again. On CPUs the allocator does not
    look at the limit, which bounds no more than what is computed ahead.

    Args:
        limit: bytes that MLX may take in total.
        peak: bytes expected to be in use at one time.
    """
    if machine().backend == "cpu":
        return min(limit, peak)
    return min(limit, int((1 + ROOM_SHARE) * peak) + ROOM)


def cache_limit(limit: int | None = None, peak: int = 0) -> int:
    """Return the bytes that MLX may keep for reuse; its own default has no bound.

    Within a limit a GPU may keep all of the `memory_room` that is not in use. Where there is none,
    and on CPUs, whose allocator knows no other limit, 4 GiB or a quarter of the memory is the most.

    Args:
        limit: bytes that MLX may take in total; None for no limit.
        peak: the part of them that is in use at one time.
    """
    here = machine()
    most = min(here.memory // 4, LARGEST_CACHE)
    if limit is None:
        return most
    if here.backend == "cpu":
        return max(0, min(most, limit - peak))
    return memory_room(limit, peak)


def cache_at_peak(limit: int, peak: int) -> int:
    """Return the most bytes that MLX keeps for reuse while ``peak`` are in use."""
    if machine().backend == "cpu":
        return cache_limit(limit, peak)
    return max(0, memory_room(limit, peak) - peak)


def bound_buffer_cache() -> None:
    """Let MLX keep at most `cache_limit` bytes for reuse."""
    mx.set_cache_limit(cache_limit())


def check_limits(limit: int, wired: Wired | None) -> None:
    """Check that the machine can have such limits.

    Args:
        limit: bytes that MLX may take in total.
        wired: what may not be swapped out; None for no such limit.

    Raises:
        MemoryLimitError: the machine has less memory than ``limit``.
        ConfigError: the machine cannot wire so much memory, or none at all.
    """
    here = machine()
    total = here.memory if here.backend == "cuda" else psutil.virtual_memory().total
    if limit > total:
        raise MemoryLimitError(
            f"`memory_limit` is {round_size(limit)}; this machine has {round_size(total)}.",
            "Use a smaller `memory_limit`, or leave it out.",
        )
    if wired is not None and here.backend != "metal":
        raise ConfigError(
            f"`wired_limit` only works on Macs: MLX cannot wire memory on {here.device}.",
            "Leave it out.",
        )
    if isinstance(wired, int) and wired > here.memory:
        raise ConfigError(
            f"`wired_limit` is {round_size(wired)}; the system allows at most "
            f"{round_size(here.memory)}.",
            "Use a smaller one, or raise the system's limit: sudo sysctl iogpu.wired_limit_mb=N",
        )


def hold_memory(limit: int, peak: int, wired: Wired | None) -> None:
    """Keep MLX within ``limit`` bytes.

    Args:
        limit: bytes in total, including those kept for reuse.
        peak: bytes expected to be in use at one time. Beyond their `memory_room` MLX waits for work
            under way before it starts more; what a single operation needs it takes nevertheless.
        wired: what may not be swapped out; None leaves that as it is.

    Raises:
        MlxchatError: as for `check_limits`.
    """
    check_limits(limit, wired)
    mx.set_memory_limit(memory_room(limit, peak))
    mx.set_cache_limit(cache_limit(limit, peak))
    if wired is not None:
        mx.set_wired_limit(_wired_bytes(wired, peak))


def _wired_bytes(wired: Wired, peak: int) -> int:
    return min(machine().memory, peak + WIRED_ROOM) if wired == "auto" else wired
