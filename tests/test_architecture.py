"""Imports point one way, MLX is imported in one place, and help needs neither."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxchat.ui.text import as_options

SOURCE = Path(__file__).parent.parent / "src" / "mlxchat"
ANYONE = {
    "autotune",
    "counts",
    "device_failures",
    "disk",
    "errors",
    "home",
    "json_text",
    "locks",
    "names",
    "openblas",
    "system",
    "telemetry",
}
ALLOWED = {
    "__main__": {"cli"},
    "autotune": {"runtime"},
    "counts": set(),
    "device_failures": set(),
    "disk": set(),
    "errors": set(),
    "home": set(),
    "json_text": set(),
    "locks": set(),
    "names": set(),
    "openblas": set(),
    "streams": {"runtime"},
    "system": set(),
    "telemetry": set(),
    "blas": set(),
    "runtime": set(),
    "model": {"autotune", "runtime", "streams"},
    "tokenizer": set(),
    "optim": {"config", "model", "runtime", "streams"},
    "data": {"tokenizer"},
    "config": {"data", "model"},
    "plan": {"config", "model", "optim"},
    "engine": {"config", "model", "runtime", "tokenizer"},
    "serve": {"config", "engine", "model", "runtime", "tokenizer"},
    "checkpoint": {"config", "data", "model", "plan", "runtime", "tokenizer"},
    "interop": {
        "checkpoint",
        "config",
        "evaluate",
        "model",
        "optim",
        "runtime",
        "tokenizer",
    },
    "evaluate": {"checkpoint", "config", "data", "engine", "model", "runtime", "tokenizer"},
    "train": {
        "checkpoint",
        "config",
        "data",
        "engine",
        "evaluate",
        "model",
        "optim",
        "plan",
        "runtime",
        "streams",
        "tokenizer",
    },
    "quantize": {"checkpoint", "config", "data", "evaluate", "model", "runtime", "train"},
    "bench": {"config", "engine", "model", "plan", "runtime", "train"},
    "trained": {
        "checkpoint",
        "config",
        "data",
        "engine",
        "evaluate",
        "interop",
        "model",
        "quantize",
        "runtime",
        "serve",
        "tokenizer",
    },
    "api": {"checkpoint", "config", "interop", "runtime", "train", "trained"},
    "monitor": {"checkpoint"},
    "report": {
        "checkpoint",
        "config",
        "data",
        "evaluate",
        "model",
        "monitor",
        "plan",
        "train",
    },
    "doctor": {"config", "engine", "model", "optim", "plan", "runtime", "train"},
    "ui": {"doctor", "model", "monitor", "plan", "report", "tokenizer"},
    "cli": {
        "autotune",
        "bench",
        "checkpoint",
        "config",
        "data",
        "doctor",
        "engine",
        "evaluate",
        "interop",
        "model",
        "monitor",
        "plan",
        "quantize",
        "report",
        "runtime",
        "serve",
        "tokenizer",
        "train",
        "ui",
    },
}
OUTSIDE = {  # packages that only these parts may import
    "mlx": {"runtime"},
    "prompt_toolkit": {"ui"},
    "rich": {"ui"},
    "typer": {"cli"},
    "gguf": {"interop"},
    "wandb": {"telemetry"},
    "trackio": {"telemetry"},
    "tensorboardX": {"report", "telemetry"},
    "httpx": {"data"},
    "pyarrow": {"data", "evaluate"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
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


JSON_READER = re.compile(r"\bjson(_format)?\.loads?\(|\b(model_)?validate_json\(")


def test_json_is_read_in_one_place() -> None:
    found = [
        str(path.relative_to(SOURCE))
        for path in modules()
        if JSON_READER.search(path.read_text("utf-8"))
    ]
    assert found == ["json_text.py"]


AROUND_THE_CONSOLE = re.compile(
    r"(?<!Literal)Console\(|\bstd(out|err)\.write|typer\.s?echo|traceback\.print"
)
PRINTS_FOR_A_PROGRAM = "doctor/child.py"  # another process reads it


def test_all_output_goes_through_the_console() -> None:
    """`LiteralConsole` keeps what controls a terminal out of texts; ruff finds print()."""
    names = {str(path.relative_to(SOURCE)): path for path in modules()}
    del names[PRINTS_FOR_A_PROGRAM]
    around = [n for n, path in names.items() if AROUND_THE_CONSOLE.search(path.read_text("utf-8"))]
    assert around == []


ONE_NAME_IN_SEVERAL_MODULES = {  # what every module of interop/exporters offers, and their front
    "require_known",
    "usage",
    "write",
}


def public_names(path: Path) -> set[str]:
    """The functions, classes and constants without a leading underscore at the top of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_a_public_name_means_one_thing() -> None:
    """No two modules define the same public name, except where the list above allows it."""
    where: dict[str, list[str]] = {}
    for path in modules():
        for name in public_names(path):
            where.setdefault(name, []).append(str(path.relative_to(SOURCE)))
    several = {name: paths for name, paths in where.items() if len(paths) > 1}
    exporters = "interop/exporters/"
    assert several.keys() == ONE_NAME_IN_SEVERAL_MODULES, several
    assert all(path.startswith(exporters) for paths in several.values() for path in paths)


FLAG = re.compile(r"--[a-z][a-z-]+")
OTHER_PROGRAMS = {  # whose options these are, or the names of whose folders
    "interop/exporters/gguf.py",
    "interop/exporters/mlx_lm.py",
    "interop/exporters/nanochat.py",
    "data/questions/files.py",
    "evaluate/tasks.py",
    "telemetry/trackers.py",
}


def strings(path: Path) -> Iterator[str]:
    """The string literals of a file, parts of f-strings among them, without docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.value


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_command_line_names_its_options(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    if part(path) == "cli" or name in OTHER_PROGRAMS:
        return
    assert [text for text in strings(path) if FLAG.search(text)] == []


SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?=[=`])")


def test_settings_in_messages_are_options() -> None:
    """Every `setting` that a message below the command line names is an option of a command."""
    script = (
        "import typer.main\n"
        "from mlxchat.cli.app import app\n"
        "def walk(command):\n"
        "    for parameter in command.params:\n"
        "        print(*parameter.opts, *parameter.secondary_opts)\n"
        "    for child in getattr(command, 'commands', {}).values():\n"
        "        walk(child)\n"
        "walk(typer.main.get_command(app))\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    options = set(printed.stdout.decode().split())
    unknown = [
        (str(path.relative_to(SOURCE)), name)
        for path in modules()
        for text in strings(path)
        for name in SETTING.findall(text)
        if as_options(f"`{name}`") not in options
    ]
    assert unknown == []


def test_settings_and_plans_import_no_mlx() -> None:
    """What a run takes can be planned, and its log read, where MLX is not installed."""
    pure = [
        f"mlxchat.{path.relative_to(SOURCE).with_suffix('').as_posix().replace('/', '.')}"
        for path in modules()
        if part(path) in {"config", "plan", "telemetry"}
    ]
    pure += ["mlxchat.model.config", "mlxchat.model.size"]
    script = (
        "import importlib, sys\n"
        f"for name in {pure}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'mlx' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


COMMANDS = [
    "",
    "train",
    "mid",
    "sft",
    "rl",
    "info",
    "scaling",
    "chat",
    "serve",
    "quantize",
    "fuse",
    "import",
    "export",
    "eval",
    "eval base",
    "eval chat",
    "quickstart",
    "bench",
    "monitor",
    "doctor",
    "report",
    "help",
    "data",
    "data fetch",
    "data remove",
    "data status",
    "tokenizer",
    "tokenizer train",
    "checkpoints",
    "runs",
    "runs list",
    "runs show",
    "runs compare",
    "runs rename",
    "runs copy",
    "runs remove",
    "runs export",
    "checkpoints list",
    "checkpoints verify",
    "checkpoints prune",
]


def test_help_imports_no_arrays() -> None:
    """One process runs the help of all commands: starting 25 of them takes most of the time."""
    script = (
        "import sys, typer.testing\n"
        "from mlxchat.cli.app import app\n"
        f"for command in {COMMANDS}:\n"
        "    arguments = [*command.split(), '--help']\n"
        "    result = typer.testing.CliRunner().invoke(app, arguments)\n"
        "    assert result.exit_code == 0 and 'Usage' in result.output, (command, result.output)\n"
        "    heavy = {'mlx', 'mlx.core', 'pyarrow', 'httpx', 'tiktoken', 'numpy'}\n"
        "    heavy |= {'prompt_toolkit', 'starlette'}\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
