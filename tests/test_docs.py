"""The documentation names files that exist, its Python runs, and the site can be built of it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.api_runs import small_runs
from support.extras import extra

from mlxchat.doctor.system import NEWEST_PYTHON, OLDEST_PYTHON

ROOT = Path(__file__).parent.parent
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "MEMORY.md")  # pages of the site beside docs/
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in OUTSIDE)])
PLACES = [ROOT, ROOT / "src" / "mlxchat", ROOT / "tests"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"\.?[\w-]+(/[\w.-]+)*(/|\.py|\.md|\.toml|\.yaml)|\.ci/run")


def paths(page: Path) -> set[str]:
    """The paths in backquotes, outside blocks of code."""
    text = FENCED.sub("", page.read_text("utf-8"))
    return {quoted for quoted in QUOTED.findall(text) if PATH.fullmatch(quoted)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    named = {path.replace("NEW.py", "__init__.py") for path in paths(page)}  # NEW is the reader's
    missing = {path for path in named if not any((place / path).exists() for place in PLACES)}
    assert not missing


def test_the_tree_names_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    [tree] = [code for language, code in FENCED.findall(page) if "mlxchat/" in code]
    source = ROOT / "src" / "mlxchat"
    parts = {path.name for path in source.iterdir() if path.is_dir() and path.name[0] != "_"}
    parts |= {path.name for path in source.glob("*.py")} - {"__main__.py"}
    listed = set(re.findall(r"^  ([\w.]+)/? ", tree, re.MULTILINE))
    assert listed == parts


def test_ci_runs_the_commands_of_the_readme() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    for command in (
        'pip install -e ".[cpu]" && mlxchat quickstart',
        'pip install -e ".[cpu,dev]" && pytest',
    ):
        assert f"\n{command}\n" in readme
        assert f"run: {command}" in workflow
    assert "run: mlxchat doctor" in workflow


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    """In the package's metadata, the README and the doctor; CI has the first and the last."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    minors = [int(minor) for minor in re.findall(r'"Programming Language .* 3\.(\d+)"', project)]
    first, last = (3, minors[0]), (3, minors[-1])
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert f'requires-python = ">=3.{first[1]},<3.{last[1] + 1}"' in project
    assert (first, last) == (OLDEST_PYTHON, NEWEST_PYTHON)
    assert f"Python 3.{first[1]} to 3.{last[1]}" in (ROOT / "README.md").read_text("utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert f'python: ["3.{first[1]}", "3.{last[1]}"]' in workflow


def make_settings() -> Any:
    """The script that writes the page of all settings."""
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs/make_settings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_what_the_declarations_say() -> None:
    script = make_settings()
    assert script.PAGE.read_text("utf-8") == script.page(), "run: python docs/make_settings.py"


def test_a_stale_page_of_settings_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = make_settings()
    monkeypatch.setattr(script, "PAGE", tmp_path / "settings.md")
    for arguments, expected in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr(sys, "argv", ["make_settings.py", *arguments])
        assert script.main() == expected


def test_the_page_of_settings_has_bounds_and_defaults() -> None:
    rows = [line.split(" | ")[:3] for line in make_settings().page().splitlines()]
    for row in (
        ["| `--depth`", "integer, 1 to 64, or auto", ""],
        ["| `--matrix-lr`", "number, more than 0", "0.02"],
        ["| `--dtype`", "one of auto, bfloat16, float32", "auto"],
        ["| `--seed`", "integer, at least 0, less than 2^32", "42"],
        ["| `--ranks`", "integer, 1 to 64", "1"],
        ["| `--data`", "PATH, repeatable", ""],
        ["| `--prompt`, `-p`", "TEXT", ""],
        ["| `--stay-awake`", "yes or no", "yes"],
        ["| `--chat`, `--base`", "yes or no", ""],
        ["| `PATH`", "PATH", ""],
    ):
        assert row in rows


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = re.findall(r"^ +- .*: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    pages = {page.name if page.name not in OUTSIDE else page.name.lower() for page in PAGES}
    assert sorted(menu) == sorted(pages)


@pytest.mark.slow  # needs the extra docs
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    extra("mkdocs")
    extra("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "training" / "index.html").read_text("utf-8")
    assert 'href="../memory/"' in page
    assert (tmp_path / "memory" / "index.html").is_file()


@pytest.mark.slow  # test_public_api has what a notebook does, with a smaller model
def test_python_in_the_documentation_runs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages share a home: both train the same model, which takes most of the time."""
    small_runs(home, tmp_path)
    monkeypatch.chdir(tmp_path)
    for page in ("docs/api.md", "README.md"):
        scope: dict[str, object] = {}
        blocks = FENCED.findall((ROOT / page).read_text("utf-8"))
        code = [block for language, block in blocks if language == "python"]
        assert code
        for block in code:
            exec(compile(block, page, "exec"), scope)
