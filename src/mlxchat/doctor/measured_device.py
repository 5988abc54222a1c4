"""Measures the device that MLX computes on: its description, a new kernel, steady work."""

import ctypes
import sys
import time

import numpy as np

from mlxchat.autotune import shown_question, tuned
from mlxchat.counts import counted
from mlxchat.doctor.probes import Device, FastestWay, FirstKernel, Load
from mlxchat.runtime import machine, mx

WIDTH = 2048  # of the matrices that keep the device busy


def describe_device() -> Device:
    """Return what MLX says of its device."""
    here, info = machine(), mx.device_info()
    return Device(
        backend=here.backend,
        name=here.device,
        compute_dtype=str(here.compute_dtype).rpartition(".")[2],
        memory=here.memory,
        largest_buffer=int(info.get("max_buffer_length", 0)),
        buffers=int(info.get("resource_limit", 0)),
        nccl=mx.distributed.is_available("nccl"),
        openblas=_openblas() if sys.platform == "linux" and here.backend == "cpu" else "",
        fastest_ways=tuple(
            FastestWay(
                question=shown_question(asked),
                answer=f"{way.chosen} ({way.comparison()})",
                sound=all(trial.sound for trial in way.trials.values()),
            )
            for asked, way in tuned().items()
        ),
    )


def _openblas() -> str:
    """Return the version and build of the OpenBLAS among the process's symbols; "" if none is."""
    symbols = ctypes.CDLL(None)
    if not hasattr(symbols, "openblas_get_config"):
        return ""
    symbols.openblas_get_config.restype = ctypes.c_char_p
    said = symbols.openblas_get_config().decode("ascii", "replace")
    threads = symbols.openblas_get_num_threads()
    return f"{' '.join(said.split()[:2])}, {counted(threads, 'threads')}"


def compile_kernel() -> FirstKernel:
    """Compile a kernel that was never compiled before, because it has a new constant."""
    constant = 1 + time.time_ns() % 10**6 / 10**6
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    compiled = mx.compile(lambda x: mx.exp(x) * constant + mx.abs(x))
    begun = time.perf_counter()
    y = np.array(compiled(mx.array(x)))
    seconds = time.perf_counter() - begun
    expected = np.exp(x.astype(np.float64)) * constant + np.abs(x)
    return FirstKernel(seconds=seconds, difference=float(np.abs(y / expected - 1).max()))


def work_without_pause(seconds: float = 4.0, width: int = WIDTH, products: int = 64) -> Load:
    """Multiply matrices for ``seconds``, ``products`` at a time, without a pause between them."""
    x = mx.full((width, width), 1 / width, machine().compute_dtype)
    begun = ended = time.perf_counter()
    longest = 0.0
    while ended - begun < seconds:
        y = x
        for _ in range(products):
            y = y @ x
        mx.eval(y)
        now = time.perf_counter()
        longest, ended = max(longest, now - ended), now
    return Load(seconds=ended - begun, longest=longest)
