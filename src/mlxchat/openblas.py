"""The OpenBLAS in this process, if `mlxchat.blas` has loaded one: its kernels and its threads."""

import ctypes
from typing import Any


def core() -> str:
    """Return the name of the kernels that it chose for this processor, such as SkylakeX, or ""."""
    function = _function("openblas_get_corename")
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    return str(function().decode())


def threads() -> int:
    """Return the number of threads that it has for a product; 0 if it is not loaded."""
    function = _function("openblas_get_num_threads")
    return int(function()) if function else 0


def set_threads(count: int) -> None:
    """Set the number of threads for a product, if it is loaded."""
    if function := _function("openblas_set_num_threads"):
        function(count)


def _function(name: str) -> Any:
    """Return a function among the process's global symbols; None if there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None)
