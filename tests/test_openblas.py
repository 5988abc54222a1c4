from pathlib import Path

import pytest

from mlxchat import runtime


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

    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    monkeypatch.setattr(runtime, "distribution", lambda _: Found())
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{flags}\n")
    expected = f"/wheel/{runtime.OPENBLAS}" if wheel else runtime.SYSTEM_OPENBLAS
    assert runtime._openblas(cpuinfo) == expected
