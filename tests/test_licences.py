"""The page of licences names every dependency and dataset; the script reads metadata rightly."""

import importlib.util
import re
from typing import Any

import pytest
from support.places import REPOSITORY

from mlxchat.data.shards import DATASETS

PAGE = (REPOSITORY / "docs/licences.md").read_text("utf-8")


@pytest.fixture(scope="module")
def script() -> Any:
    path = REPOSITORY / "docs/make_licences.py"
    spec = importlib.util.spec_from_file_location("make_licences", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_dependency_has_a_row(script: Any) -> None:
    project = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    declared = project.split("\ndependencies = [")[1].split("[project.scripts]")[0]
    named = set(re.findall(r'"([A-Za-z][\w-]*)(?:\[\w+\])?[<>=]', declared))
    rows = set(re.findall(r"^\| ([\w.-]+) \| \d", PAGE, re.MULTILINE))
    canonical = script.canonicalize_name
    assert len(named) > 30
    missing = {canonical(each) for each in named} - {canonical(each) for each in rows}
    assert missing == {"tomli"}  # of Python 3.10, named above the tables
    assert "`tomli`" in PAGE
    extras = re.findall(r"^(\w+) = \[", declared, re.MULTILINE)
    assert set(extras) == {*script.USED, *script.DEVELOPING} - {""}
    assert all(f"### Extra `{extra}`\n" in PAGE for extra in extras)


def test_every_dataset_of_the_hub_has_a_row_with_its_licence() -> None:
    for dataset in DATASETS.values():
        [row] = [line for line in PAGE.splitlines() if line.startswith(f"| {dataset.name} ")]
        assert f"https://huggingface.co/datasets/{dataset.repo})" in row
        assert dataset.licence_note in row


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"license_expression": "MIT OR Apache-2.0", "license": "?"}, "MIT OR Apache-2.0"),
        ({"classifier": ["License :: OSI Approved :: MIT License"], "license": "x"}, "MIT License"),
        ({"classifier": ["License :: OSI Approved"], "license": "BSD-3-Clause"}, "BSD-3-Clause"),
        ({"license": f"A text\n{'of many lines ' * 9}"}, "A text"),
        ({"license": "words " * 20}, "unknown"),
        ({"classifier": ["License :: Other/Proprietary License"]}, "Other/Proprietary License"),
        ({}, "unknown"),
    ],
)
def test_the_licence_of_metadata(script: Any, metadata: dict[str, Any], licence: str) -> None:
    assert script.licence(metadata) == licence


def test_a_package_is_in_the_table_of_the_first_extra_that_brings_it(script: Any) -> None:
    requires = ["one", "two>=1; extra == 'serve'", "one[more]; extra == 'cpu'"]
    packages = {
        "mlxchat": {"name": "mlxchat", "version": "1", "requires_dist": requires},
        "one": {"name": "One", "version": "1", "requires_dist": ["three; extra == 'more'"]},
        "two": {"name": "two", "version": "2", "requires_dist": ["three", "absent"]},
        "three": {"name": "three", "version": "3", "license_expression": "MIT"},
    }
    text = "\n".join(script.page_of(packages))
    always, cpu, _, serve, *_ = text.split("### ")[1:]
    assert "| One | 1 | unknown |" in always
    assert "| three | 3 | MIT |" in cpu
    assert "| two | 2 | unknown |" in serve and "three" not in serve
