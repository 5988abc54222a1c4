"""Prepares the first import of MLX on Linux: OpenBLAS and environment variables.

On Linux the CPU wheel of MLX brings the reference BLAS, 3 to 7 GFLOP/s where OpenBLAS reaches tens
or hundreds on the same two cores. An OpenBLAS whose symbols carry no prefix, loaded with
``RTLD_GLOBAL`` before ``mlx.core``, takes its place. Loaded after it, OpenBLAS changes nothing: the
wheel binds its symbols when it is loaded.

`prepare` is called when `mlxchat` is imported. It only registers an import hook, which does the
work when somebody imports ``mlx.core``: mlxchat, or a program that imports mlxchat first. So
``mlxchat --help`` pays nothing. What the work needs is imported within functions for the same
reason.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

OPENBLAS = "cmeel.prefix/lib/libopenblas.so.0"  # in the distribution cmeel-openblas
SYSTEM_OPENBLAS = "libopenblas.so.0"
MLX = "mlx.core"


def prepare() -> None:
    """Have OpenBLAS loaded before MLX is imported; warn if MLX was imported already."""
    if sys.platform != "linux":
        return  # Macs have a BLAS of their own
    if MLX not in sys.modules:
        sys.meta_path.insert(0, _BeforeMLX)
        return
    _set_environment()
    if _wheel_libraries() and not _is_loaded():
        warnings.warn(
            "MLX was imported before mlxchat, too early for OpenBLAS: this process will compute 10 "
            "to 30 times slower. Restart it with `import mlxchat` before the first `import mlx`",
            RuntimeWarning,
            stacklevel=3,  # the line that imports mlxchat
        )


class _BeforeMLX:
    """An import hook that prepares the first import of MLX and finds nothing itself."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: object = None) -> None:
        """Load OpenBLAS if ``name`` is MLX's, and leave the import to the other finders."""
        if name == MLX and cls in sys.meta_path:
            sys.meta_path.remove(cls)
            _set_environment()
            _load_openblas()


def _set_environment() -> None:
    """Set the variables that MLX reads when it starts."""
    from contextlib import suppress
    from importlib.metadata import version

    from mlxchat.errors import ConfigError
    from mlxchat.home import Home

    if _wheel_libraries():
        # How much of a graph's breadth is walked at once. With MLX's default of 20, work for two
        # streams would be given to one after the other.
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "200")
    # The memory that work under way on CUDA may hold at a time, in MB. MLX's default is a gigabyte
    # for each of ten parts of a graph.
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "100")
    # Where compiled CUDA kernels are kept; compiling takes up to minutes. MLX's default is /tmp,
    # which a restart of the machine empties.
    with suppress(ConfigError):  # there is no home folder; then MLX's default has to do
        kernels = Home.from_environment().kernels(version("mlx"))
        os.environ.setdefault("MLX_PTX_CACHE_DIR", str(kernels))


def _load_openblas() -> None:
    """Load OpenBLAS in front of the reference BLAS; warn if there is none."""
    import ctypes
    from importlib.metadata import PackageNotFoundError

    libraries = _wheel_libraries()
    if libraries is None:
        return
    try:
        openblas = _openblas(Path("/proc/cpuinfo"))
        try:
            ctypes.CDLL(openblas, mode=ctypes.RTLD_GLOBAL)
        except OSError:  # the system has no Fortran runtime
            _load_gfortran(libraries)
            ctypes.CDLL(openblas, mode=ctypes.RTLD_GLOBAL)
    except (OSError, PackageNotFoundError) as error:
        warnings.warn(
            f"OpenBLAS is not available ({error}): training will be 10 to 30 times slower. "
            'Install it with the extra cpu, pip install "mlxchat[cpu]", or, on a processor without '
            "AVX-512, through your system, as in apt install libopenblas0",
            RuntimeWarning,
            stacklevel=3,
        )


def _wheel_libraries() -> Path | None:
    """Return the folder of libraries in MLX's CPU wheel; None if that is not installed.

    Other backends have a BLAS of their own.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return Path(str(distribution("mlx-cpu").locate_file("mlx_cpu.libs")))
    except PackageNotFoundError:
        return None


def _openblas(cpuinfo: Path) -> str:
    """Return the library to load: the one of the extra cpu, or the system's.

    The extra's is built for AVX-512 alone on x86-64, and an older processor cannot run it.
    """
    from importlib.metadata import distribution

    if os.uname().machine == "x86_64" and "avx512f" not in cpuinfo.read_text("ascii", "replace"):
        return SYSTEM_OPENBLAS
    return str(distribution("cmeel-openblas").locate_file(OPENBLAS))


def _load_gfortran(libraries: Path) -> None:
    """Load the Fortran runtime that OpenBLAS needs from the copy inside MLX's own wheel.

    The wheel renames it (``libgfortran-<hash>.so.5``), so the linker does not recognise it as the
    ``libgfortran.so.5`` that OpenBLAS asks for; a copy in memory gets its original name back.
    """
    import ctypes

    for library in sorted(libraries.glob("libquadmath-*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    for library in sorted(libraries.glob("libgfortran-*")):
        renamed = library.name.encode() + b"\0"
        original = b"libgfortran.so.5".ljust(len(renamed), b"\0")
        descriptor = os.memfd_create("libgfortran.so.5")
        with os.fdopen(descriptor, "wb", closefd=False) as memory:
            memory.write(library.read_bytes().replace(renamed, original))
        ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)


def _is_loaded() -> bool:
    """Return whether an OpenBLAS is among the process's global symbols, by `LD_PRELOAD` say."""
    import ctypes

    return hasattr(ctypes.CDLL(None), "openblas_get_config")
