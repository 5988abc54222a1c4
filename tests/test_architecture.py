"""Imports point one way, MLX is imported in one place, and help needs neither."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mlxchat"
ANYONE = {"errors", "home", "meter", "status", "telemetry"}
MODEL = {"model", "runtime"}
SERVICES = MODEL | {"engine", "ckpt", "data", "optim"}
ALLOWED = {
    "errors": set(),
    "home": set(),
    "telemetry": set(),
    "meter": set(),
    "status": set(),
    "runtime": set(),
    "model": {"runtime"},
    "optim": MODEL,
    "data": MODEL,
    "engine": MODEL,
    "ckpt": MODEL | {"data"},
    "evaluate": SERVICES,
    "train": SERVICES | {"evaluate"},
    "chat": SERVICES,
    "quantize": SERVICES | {"evaluate"},
    "bench": SERVICES | {"train"},
    "monitor": {"ckpt"},
    "ui": {"monitor"},
    "__main__": {"cli"},
    "cli": SERVICES | {"monitor", "ui", "train", "chat", "quantize", "evaluate", "bench"},
}
OUTSIDE = {  # packages that only these parts may import
    "mlx": {"runtime"},
    "rich": {"ui"},
    "typer": {"cli"},
    "httpx": {"data"},
    "pyarrow": {"data"},
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mlxchat":
                names |= {f"mlxchat.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    if own == "__init__":
        return
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "mlxchat":
            other = rest.split(".")[0]
            version = other == "__version__"
            assert version or other == own or other in ALLOWED[own] | ANYONE, f"imports {name}"
        elif package in OUTSIDE:
            assert own in OUTSIDE[package], f"imports {name}"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "sft",
        "info",
        "chat",
        "quantize",
        "import",
        "export",
        "eval",
        "eval chat",
        "quickstart",
        "bench",
        "monitor",
        "data",
        "data fetch",
        "data status",
        "tokenizer",
        "tokenizer train",
        "checkpoints",
        "checkpoints list",
        "checkpoints verify",
        "checkpoints prune",
    ],
)
def test_help_imports_no_arrays(command: str) -> None:
    script = (
        "import sys, typer.testing\n"
        "from mlxchat.cli.app import app\n"
        f"result = typer.testing.CliRunner().invoke(app, {[*command.split(), '--help']})\n"
        "assert result.exit_code == 0 and 'Usage' in result.output, result.output\n"
        "heavy = {'mlx', 'mlx.core', 'pyarrow', 'httpx', 'tiktoken', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
