"""How many processes run the tests, and the fixtures of all: a home for each, nanochat's models."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for matrices this small, threads only wait
# On CUDA and M5 float32 products would be rounded to 10 bits of mantissa: too coarse for 1e-4.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
os.environ["WANDB_MODE"] = "offline"  # whoever is logged in sends nothing from a test
hypothesis.settings.register_profile(  # a busy machine is no failure
    "mlxchat", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("mlxchat")
pytest.register_assert_rewrite("support")

from support.cases import Case  # noqa: E402
from support.runs import train_builtin_tokenizer  # noqa: E402

from mlxchat.autotune import fixed  # noqa: E402

MOST_WORKERS = 4  # each imports MLX and holds its models


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Spread whole folders over processes; run the tests of named files in this one (0).

    So ``pytest tests/x.py -k y`` starts at once, with its output in order and ``-s`` working.
    """
    if all(".py" in argument for argument in config.args):
        return 0
    return min(os.cpu_count() or 1, MOST_WORKERS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("MLXCHAT_HOME", str(folder))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "MLXCHAT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(autouse=True)
def plain_ways() -> Iterator[None]:
    """Measure nothing: what this machine finds fastest must not decide what is tested."""
    with fixed(streams="one", products="one stream"):
        yield


@pytest.fixture(scope="session")
def builtin_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tokenizer that a run of 300 tokens trains on the built-in corpus."""
    return train_builtin_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def prepared(builtin_tokenizer: Path, tmp_path: Path) -> Path:
    """A folder as a home that has that tokenizer, so that no run in it needs to train one."""
    shutil.copytree(builtin_tokenizer, tmp_path / builtin_tokenizer.name)
    return tmp_path


@pytest.fixture
def prepared_home(builtin_tokenizer: Path, home: Path) -> Path:
    """The test's own home, with that tokenizer."""
    shutil.copytree(builtin_tokenizer, home / builtin_tokenizer.name)
    return home


@pytest.fixture(scope="module", params=["classic", "modern"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)
