"""Fixtures of all tests: a home for each, and nanochat's models."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for matrices this small, threads only wait
# On CUDA and M5 float32 products would be rounded to 10 bits of mantissa: too coarse for 1e-4.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
pytest.register_assert_rewrite("support")

from support.cases import Case  # noqa: E402


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("MLXCHAT_HOME", str(folder))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="module", params=["classic", "modern"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)
