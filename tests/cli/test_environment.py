"""The table of environment variables has all that the program reads."""

import ast
import re
from pathlib import Path

import pytest
from support.program import Program

import mlxchat
from mlxchat.cli.environment import VARIABLES_BY_TOPIC

SOURCE = Path(mlxchat.__file__).parent
TABLE = SOURCE / "cli" / "environment.py"
LISTED = [
    name for variables in VARIABLES_BY_TOPIC.values() for one in variables for name in one.names
]
NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|COLUMNS|LINES|HOME|TERM|SHELL")
OTHERS = {  # constants that look like a variable's name
    *("ALL_F32", "CAUSAL_LM", "FINISHING_SECONDS", "FIXED_LEN_BYTE_ARRAY", "F_FULLFSYNC"),
    *("MLX_CUDA_USE_CUDNN_SDPA", "MLX_ENABLE_TF32", "MLX_SDPA_VJP_FALLBACK"),  # set by the doctor
    *("COMP_CWORD", "COMP_WORDS"),  # set by bash when it asks for completions
    "VERSION_ID",  # a key of /etc/os-release
}
READ_BY_OTHERS = {  # Python's own modules and rich
    *("HOME", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "NO_COLOR", "TERM"),
}


def strings(path: Path) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_variable_in_the_source_is_listed() -> None:
    found = {
        text
        for path in SOURCE.rglob("*.py")
        if path != TABLE
        for text in strings(path)
        if NAME.fullmatch(text)
    }
    assert found - OTHERS - set(LISTED) == set()
    assert set(LISTED) - found == READ_BY_OTHERS
    assert len(LISTED) == len(set(LISTED))


READS = re.compile(r"os\.(?:environ(?:\.get|\.setdefault)?|getenv)[\[(]\s*([^\s\],)]+)")


def test_no_variable_is_read_by_a_name_that_is_made_up() -> None:
    """The test above finds literal names only; these places read names from such constants."""
    computed = {
        (str(path.relative_to(SOURCE)), name)
        for path in SOURCE.rglob("*.py")
        for name in READS.findall(path.read_text("utf-8"))
        if not name.startswith('"')
    }
    assert computed == {
        ("cli/ranks.py", "BLAS_THREADS"),
        ("cli/ranks.py", "EXIT_CODE_FILE"),
        ("cli/ranks.py", "LAUNCHER"),
        ("config/serve.py", "API_KEY"),
        ("data/connection.py", "name"),  # of a proxy, by the scheme of an address
        ("data/connection.py", "variable"),
        ("data/hub.py", "source"),
        ("data/hub.py", "variable"),
        ("doctor/privacy.py", "HOME_VARIABLE"),
        ("telemetry/trackers.py", "variable"),
    }


@pytest.mark.parametrize("columns", ["40", "80", "160"])
def test_the_variables_are_in_the_help(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    program = Program(monkeypatch, capsys)
    code, out, _ = program("help", "environment")
    assert code == 0
    assert max(map(len, out.splitlines())) <= min(int(columns), 100)
    assert all(name in out for name in LISTED)
    assert "mlxchat help environment" in " ".join(program("--help")[1].split())


def test_help_of_a_command_is_that_of_its_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Program(monkeypatch, capsys)
    assert program("help", "data", "fetch") == program("data", "fetch", "--help")
    assert program("help") == program("--help")
    code, _, err = program("help", "nonsense")
    assert code == 2 and "No such command 'nonsense'" in err
