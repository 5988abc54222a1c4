"""Runs the source of a kernel on the CPU: a thread for each of its threads, one block at a time."""

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

COMPILER = shutil.which("g++") or shutil.which("clang++")
TYPES = {mx.float32: "float", mx.float16: "_Float16", mx.int32: "int"}
HEADER = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
#define DEVICE
#define SHARED static
#define BARRIER everyone->arrive_and_wait()
static std::barrier<>* everyone;
static std::vector<std::barrier<>*> in_step;
static float values[1024];
static thread_local unsigned thread_id, block_id;
static float power_of_two(float x) { return std::exp2(x); }
static float inverse(float x) { return 1.0f / x; }
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static float simd_sum(float x) {
  values[thread_id] = x;
  in_step[thread_id / 32]->arrive_and_wait();
  float sum = 0.0f;
  for (unsigned i = thread_id / 32 * 32; i < thread_id / 32 * 32 + 32; i++) sum += values[i];
  in_step[thread_id / 32]->arrive_and_wait();
  return sum;
}
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};
using Threads = std::vector<std::thread>;
// What Metal reserves and C++ does not.
#pragma GCC poison thread device constant threadgroup kernel vertex fragment half bfloat uchar
#pragma GCC poison sampler texture2d patch visible
"""
RUN = """
extern "C" void run(int blocks, void** arrays) {{
  for (int number = 0; number < blocks; number++) {{
    std::barrier<> whole(THREADS);
    everyone = &whole;
    in_step.clear();
    for (int i = 0; i < THREADS / 32; i++) in_step.push_back(new std::barrier<>(32));
    Threads threads;
    for (int i = 0; i < THREADS; i++)
      threads.emplace_back([=] {{ thread_id = i; block_id = number; compute({arguments}); }});
    for (auto& each : threads) each.join();
    for (auto* each : in_step) delete each;
  }}
}}
"""


def emulate(
    folder: Path,
    kernel: Kernel,
    inputs: Sequence[mx.array],
    outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
    *,
    blocks: int,
    threads: int,
    **constants: int | mx.Dtype,
) -> list[mx.array]:
    """Return what the kernel computes; the arguments are those of `Kernel.__call__`."""
    given = [np.ascontiguousarray(np.array(x)) for x in inputs]
    results = [
        np.full(shape, np.nan, np.array(mx.zeros(1, dtype)).dtype) for shape, dtype in outputs
    ]
    dtypes = [x.dtype for x in inputs] + [dtype for _, dtype in outputs]
    names = [*kernel.inputs, *kernel.outputs]
    types = [f"{TYPES[dtype]}*" for dtype in dtypes]
    written = [
        f"#define {name} {TYPES[value] if isinstance(value, mx.Dtype) else value}\n"
        for name, value in [*constants.items(), ("THREADS", threads)]
    ]
    parameters = ", ".join(f"{type} {name}" for type, name in zip(types, names, strict=True))
    arguments = ", ".join(f"({type})arrays[{i}]" for i, type in enumerate(types))
    source = (
        HEADER
        + "".join(written)
        + f"static void compute({parameters}) {{\n{kernel.body}\n}}\n"
        + RUN.format(arguments=arguments)
    )
    library = _compiled(folder, source)
    arrays: list[npt.NDArray[np.generic]] = [*given, *results]
    pointers = (ctypes.c_void_p * len(arrays))(*(x.ctypes.data for x in arrays))
    library.run(blocks, pointers)
    return [mx.array(result) for result in results]


def _compiled(folder: Path, source: str) -> ctypes.CDLL:
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    path, library = folder / f"{name}.cpp", folder / f"{name}.so"
    if not library.exists():
        path.write_text(source)
        command = [str(COMPILER), "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, str(path), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
