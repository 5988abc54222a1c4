"""The words of NVIDIA's compiler, which is made up here, are passed on."""

import ctypes
from types import SimpleNamespace

import pytest

from mlxchat.model.kernels import nvrtc
from mlxchat.runtime import mx


@pytest.mark.parametrize(
    ("log", "said"),
    [(b"kernel.cu(1): error\n\0", r"^kernel.cu\(1\): error$"), (b"\0", "NVRTC's error 6, .*sm_75")],
)
def test_a_refusal_says_why(log: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def size(_: object, into: ctypes.c_size_t) -> int:
        ctypes.cast(into, ctypes.POINTER(ctypes.c_size_t))[0] = len(log)
        return 0

    def text(_: object, into: ctypes.Array[ctypes.c_char]) -> int:
        ctypes.memmove(into, log, len(log))
        return 0

    compiler = SimpleNamespace(
        nvrtcCreateProgram=lambda *_: 0,
        nvrtcCompileProgram=lambda *_: 6,
        nvrtcGetProgramLogSize=size,
        nvrtcGetProgramLog=text,
        nvrtcDestroyProgram=lambda _: 0,
    )
    monkeypatch.setattr(nvrtc, "_library", lambda: compiler)
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "sm_75"})
    with pytest.raises(RuntimeError, match=said):
        nvrtc.compile_cuda("")
