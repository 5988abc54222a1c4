"""One source text for two languages: CUDA's and Metal's.

A kernel's body uses what both have, and from here:

    thread_id, block_id         its numbers, within the block and in the grid
    simd_sum(x)                 the sum over the 32 neighbouring threads, known to all of them
    power_of_two(x), inverse(x) 2**x and 1 / x, within a few units in the last place
    SHARED, BARRIER             memory of a block, and waiting for all of its threads
    Pack<T, N>                  N numbers that are read or written at once

Pointers into arrays are declared ``DEVICE``. Metal reserves words that C++ does not, such as
thread, device, constant and kernel. Inputs of fewer than 8 numbers are in another address space
there: they are read by index, never through a pointer.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, cast

from mlxchat.model.kernels.nvrtc import compile_cuda
from mlxchat.runtime import machine, mx

SIMD = 32  # threads that compute in step on NVIDIA's and Apple's GPUs

Constant = int | mx.Dtype

_BOTH = """
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};
"""

_CUDA = """
#define DEVICE
#define SHARED __shared__
#define BARRIER __syncthreads()
struct bfloat16 {
  unsigned short bits;
  bfloat16() = default;
  __device__ explicit bfloat16(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ operator float() const { return __uint_as_float(unsigned(bits) << 16); }
};
struct float16 {
  unsigned short bits;
  float16() = default;
  __device__ explicit float16(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
};
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float inverse(float x) { return __fdividef(1.0f, x); }
__device__ inline float simd_sum(float x) {
  for (int distance = 16; distance; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
"""
_CUDA_TYPES = {
    mx.bfloat16: "bfloat16",
    mx.float16: "float16",
    mx.float32: "float",
    mx.int32: "int",
}

_METAL = """
#define DEVICE device
#define SHARED threadgroup
#define BARRIER threadgroup_barrier(mem_flags::mem_threadgroup)
inline float power_of_two(float x) { return exp2(x); }
inline float inverse(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return rsqrt(x); }
inline float logf(float x) { return log(x); }
inline float sinf(float x) { return precise::sin(x); }
inline float cosf(float x) { return precise::cos(x); }
"""


class Kernel:
    """A kernel that is compiled when it is first computed.

    Args:
        name: a name, unknown to both languages.
        inputs, outputs: the names of its arrays in the body.
        body: the source text, in both languages.
    """

    def __init__(self, name: str, inputs: Sequence[str], outputs: Sequence[str], body: str) -> None:
        self.name, self.inputs, self.outputs, self.body = name, inputs, outputs, body

    @property
    def revision(self) -> str:
        """A hash of the source text, of both languages."""
        text = _BOTH + _CUDA + _METAL + self.body
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __call__(
        self,
        inputs: Sequence[mx.array],
        outputs: Sequence[tuple[Sequence[int], mx.Dtype]],
        *,
        blocks: int,
        threads: int,
        **constants: Constant,
    ) -> list[mx.array]:
        """Return the outputs, whose shapes and dtypes are given.

        Args:
            inputs: the arrays; those that are not contiguous are copied.
            outputs: shape and dtype of each output.
            blocks, threads: the size of the grid, and of a block.
            constants: numbers and types that the body is compiled for, by their names in it.

        Raises:
            RuntimeError: CUDA's compiler refuses the source text.
        """
        launch = self._on_cuda if machine().backend == "cuda" else self._on_metal
        return launch(
            inputs=list(inputs),
            output_shapes=[tuple(shape) for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
            constants=(*constants.items(), ("THREADS", threads)),
            grid=(blocks * threads, 1, 1),
            threadgroup=(threads, 1, 1),
        )

    def _on_cuda(
        self,
        *,
        inputs: list[mx.array],
        output_dtypes: list[mx.Dtype],
        constants: tuple[tuple[str, Constant], ...],
        **launch: Any,
    ) -> list[mx.array]:
        types = [f"const {_CUDA_TYPES[x.dtype]}*" for x in inputs]
        types += [f"{_CUDA_TYPES[dtype]}*" for dtype in output_dtypes]
        names = [*self.inputs, *self.outputs]
        parameters = [f"{type} {name}" for type, name in zip(types, names, strict=True)]
        code = _compiled(self, ", ".join(parameters), constants)
        run = cast(Callable[..., list[mx.array]], mx.fast.precompiled_cuda_kernel)
        return run(
            name=self.name,
            compiled_source=code,
            inputs=inputs,
            output_dtypes=output_dtypes,
            scalars=[],
            ensure_row_contiguous=True,
            **launch,
        )

    def _on_metal(
        self, *, constants: tuple[tuple[str, Constant], ...], **launch: Any
    ) -> list[mx.array]:
        return self._metal(template=list(constants), **launch)

    @cached_property
    def _metal(self) -> Callable[..., list[mx.array]]:
        thread, block = "thread_position_in_threadgroup.x", "threadgroup_position_in_grid.x"
        return cast(
            Callable[..., list[mx.array]],
            mx.fast.metal_kernel(
                name=self.name,
                input_names=list(self.inputs),
                output_names=list(self.outputs),
                header=_METAL + _BOTH,
                source=f"const uint thread_id = {thread}, block_id = {block};\n{self.body}",
            ),
        )


@cache
def _compiled(
    kernel: Kernel, parameters: str, constants: tuple[tuple[str, Constant], ...]
) -> bytes:
    """Return the machine code of a kernel for CUDA.

    Raises:
        RuntimeError: the source text has errors.
    """
    fixed = [
        f"constexpr int {name} = {value};\n"
        if isinstance(value, int)
        else f"using {name} = {_CUDA_TYPES[value]};\n"
        for name, value in constants
    ]
    threads = dict(constants)["THREADS"]
    return compile_cuda(
        f'{_CUDA}{_BOTH}extern "C" __global__ void __launch_bounds__({threads})\n'
        f"{kernel.name}({parameters}) {{\n{''.join(fixed)}"
        "const unsigned thread_id = threadIdx.x, block_id = blockIdx.x;\n"
        f"{kernel.body}\n}}\n"
    )


def widest(length: int, *choices: int) -> int:
    """Return the largest choice that divides ``length``; 1 divides all.

    >>> widest(50304, 8, 4, 2)
    8
    """
    return next((choice for choice in choices if length % choice == 0), 1)
