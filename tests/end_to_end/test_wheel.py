"""The wheel has the whole program and nothing else, and the sdist builds the same wheel."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.extras import extra
from support.places import REPOSITORY

from mlxchat import __version__

pytestmark = pytest.mark.slow  # needs hatchling, of the extra dev


def build(root: Path, target: str, folder: Path) -> Path:
    """Build a wheel or an sdist into a folder, which has nothing else."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    extra("hatchling")
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel with their checksums, without the list of them."""
    with zipfile.ZipFile(wheel) as packed:
        return {each.filename: each.CRC for each in packed.infolist()}


def test_the_wheel_has_all_files_of_the_package_and_its_licence(wheel: Path) -> None:
    assert wheel.name == f"mlxchat-{__version__}-py3-none-any.whl"
    source = REPOSITORY / "src"
    files = [path for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    ours = {path.relative_to(source).as_posix() for path in files}
    about = f"mlxchat-{__version__}.dist-info"
    names = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    assert set(contents(wheel)) == ours | {f"{about}/{name}" for name in names}
    for needed in ("py.typed", "serve/page/index.html", "report/look/report.css"):
        assert f"mlxchat/{needed}" in ours


def test_the_program_starts_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    for arguments, expected in (("--version", f"mlxchat {__version__}\n"), ("--help", "train")):
        command = [sys.executable, "-m", "mlxchat", arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        assert expected in done.stdout


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build(REPOSITORY, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    root = tmp_path / f"mlxchat-{__version__}"
    assert contents(build(root, "wheel", tmp_path / "again")) == contents(wheel)
    assert (root / "tests/golden").is_dir() and (root / "README.md").is_file()
