"""The scripts in benchmarks/ keep up with the names that they import from mlxchat."""

import ast
import importlib
from pathlib import Path

import pytest
from support.places import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_benchmark_imports_from_mlxchat_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mlxchat":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
