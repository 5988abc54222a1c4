"""OpenBLAS is loaded before MLX, or a warning says why the process will be slow."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxchat import blas

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Macs have a BLAS of their own")


@pytest.mark.parametrize(
    ("machine", "flags", "wheel"),
    [
        ("x86_64", "flags : fpu avx2 avx512f avx512bw", True),
        ("x86_64", "flags : fpu avx avx2 fma", False),
        ("aarch64", "Features : fp asimd", True),
    ],
)
def test_the_wheel_is_for_processors_that_can_run_it(
    machine: str, flags: str, wheel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        def locate_file(self, path: str) -> Path:
            return Path("/wheel") / path

    monkeypatch.setattr(blas.platform, "machine", lambda: machine)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Found())
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{flags}\n")
    expected = f"/wheel/{blas.OPENBLAS}" if wheel else blas.SYSTEM_OPENBLAS
    assert blas._openblas(cpuinfo) == expected


def python(script: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", script]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


LOADED = "from mlxchat.blas import _is_loaded, _wheel_libraries\n"


def needs_openblas() -> None:
    """Skip on machines where MLX has another BLAS, or OpenBLAS cannot be loaded."""
    found = python(f"import mlxchat.runtime\n{LOADED}print(_is_loaded(), _wheel_libraries())")
    if not found.stdout.startswith("True /"):
        pytest.skip("no OpenBLAS for MLX's CPU wheel")


@LINUX
@pytest.mark.parametrize(
    "imports",
    [
        "import mlxchat, mlx.core",
        "import mlxchat, mlx.nn",
        "import mlxchat; from mlxchat import runtime",
        "from mlxchat.runtime import mx",
    ],
)
def test_mlxchat_before_mlx_loads_openblas(imports: str) -> None:
    needs_openblas()
    done = python(f"{imports}\n{LOADED}assert _is_loaded()", "-W", "error")
    assert done.returncode == 0, done.stderr


@LINUX
def test_mlx_before_mlxchat_is_warned_of_at_the_import() -> None:
    needs_openblas()
    done = python(f"import mlx.core\nimport mlxchat\n{LOADED}assert not _is_loaded()")
    assert done.returncode == 0, done.stderr
    assert "<string>:2: RuntimeWarning: MLX was imported before mlxchat" in done.stderr
    assert "import mlxchat" in done.stderr


@LINUX
def test_a_preloaded_openblas_is_not_warned_of() -> None:
    needs_openblas()
    library = blas._openblas(Path("/proc/cpuinfo"))
    done = python("import mlx.core, mlxchat", "-W", "error", LD_PRELOAD=library)
    assert done.returncode == 0, done.stderr


def test_importing_mlxchat_alone_loads_nothing() -> None:
    script = (
        "import sys, mlxchat\n"
        f"{LOADED if sys.platform == 'linux' else ''}"
        "heavy = {'mlx', 'mlx.core', 'numpy', 'pyarrow', 'ctypes'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr
