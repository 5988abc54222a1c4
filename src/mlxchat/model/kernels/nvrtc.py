"""NVIDIA's run-time compiler, which MLX brings along, called directly.

`mx.fast.cuda_kernel` includes MLX's headers, and takes two seconds to compile the smallest kernel
at every start of a program. Without them it takes a fiftieth of a second.
"""

import ctypes

from mlxchat.runtime import mx

LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")


def compile_cuda(source: str) -> bytes:
    """Return the machine code of a source text for this machine's GPU.

    Raises:
        RuntimeError: there is no compiler, or it finds errors, which the text has.
    """
    compiler, program = _library(), ctypes.c_void_p()
    made = compiler.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
    )
    _require(made == 0, "nvrtcCreateProgram failed")
    try:
        options = [f"-arch={mx.device_info()['architecture']}", "-std=c++17"]
        given = (ctypes.c_char_p * len(options))(*map(str.encode, options))
        failed = compiler.nvrtcCompileProgram(program, len(options), given)
        if failed:
            log = _text(compiler, "ProgramLog", program).decode(errors="replace").strip("\0\n ")
            # The log is empty where the assembler refuses what the compiler took.
            raise RuntimeError(log or f"NVRTC's error {failed}, with {options[0]}")
        return _text(compiler, "CUBIN", program)
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"none of {', '.join(LIBRARIES)} can be loaded")


def _text(compiler: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    got = getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    _require(got == 0, f"nvrtcGet{what}Size failed")
    text = ctypes.create_string_buffer(size.value)
    _require(getattr(compiler, f"nvrtcGet{what}")(program, text) == 0, f"nvrtcGet{what} failed")
    return text.raw


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise RuntimeError(problem)
