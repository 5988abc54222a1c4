"""What shells complete: their scripts, and the names of runs and datasets."""

import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer.main

from mlxchat.checkpoint import store
from mlxchat.cli.app import COMMANDS, GROUPS, app
from mlxchat.cli.completion import REQUEST, answer_shells, with_shell_named
from mlxchat.home import Home

NAMES = [*COMMANDS, *(f"{group} {name}" for group, (_, own) in GROUPS.items() for name in own)]


@pytest.fixture
def runs(home: Path) -> Home:
    """A home with two base models, a fine-tuned one, a run without a step, and a dataset."""
    made = Home(home)
    for run in (made.runs / "d4", made.runs / "d12", made.finetuned / "d4-sft"):
        store.directory(run, 5).mkdir(parents=True)
        (store.directory(run, 5) / "trainer.json").touch()
    store.directory(made.runs / "imported", 0).mkdir(parents=True)
    (made.runs / "empty").mkdir()
    made.log("failed").parent.mkdir(parents=True)  # before it had saved a step
    made.data("novel").mkdir(parents=True)
    return made


@functools.cache
def program() -> click.Command:
    return typer.main.get_command(app)


def printed(*arguments: str) -> str:
    """What the program prints, as a shell starts it."""
    answer_shells(os.environ)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        program()([*arguments], prog_name="mlxchat", standalone_mode=False)
    return out.getvalue()


def asked(monkeypatch: pytest.MonkeyPatch, shell: str, line: str) -> str:
    """What the program answers a shell about a line that ends at the cursor."""
    words = line.split(" ")
    bash = [part for word in words for part in re.split("(=)", word)]
    for name, value in {
        REQUEST: f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "\n".join(bash).rstrip("\n"),
        "COMP_CWORD": str(len(bash) - 1),
        "COLUMNS": "20",
    }.items():
        monkeypatch.setenv(name, value)
    return printed()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mlxchat train --resume ", ["d12", "d4"]),
        ("mlxchat sft --resume ", ["d4-sft"]),
        ("mlxchat rl --resume ", []),
        ("mlxchat chat --model-tag d4", ["d4", "d4-sft"]),
        ("mlxchat train --model-tag d1", ["d12"]),
        ("mlxchat sft --source ", ["d12", "d4", "d4-sft", "imported"]),
        ("mlxchat rl --source d4-", ["d4-sft"]),
        ("mlxchat train --init-from d1", ["d12"]),
        ("mlxchat checkpoints list --model-tag d1", ["d12"]),
        ("mlxchat import x --onto d1", ["d12"]),
        ("mlxchat runs show d4-", ["d4-sft"]),
        ("mlxchat runs compare d12 d4-", ["d4-sft"]),
        ("mlxchat runs remove d12 f", ["failed"]),
        ("mlxchat report f", ["failed"]),
        ("mlxchat chat --model-tag f", []),
        ("mlxchat data remove no", ["novel"]),
        ("mlxchat train --dataset ", ["fineweb-edu", "climbmix", "builtin", "novel"]),
        ("mlxchat data fetch --dataset no", ["novel"]),
        ("mlxchat train --arch m", ["modern"]),
    ],
)
def test_names_are_completed(
    runs: Home, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    assert asked(monkeypatch, "bash", line).split() == expected
    assert asked(monkeypatch, "fish", line).split() == expected
    assert re.findall(r'"([\w.-]+)"', asked(monkeypatch, "zsh", line)) == expected


@pytest.mark.parametrize("line", ["mlxchat chat --model-tag=d1", "mlxchat chat --model-tag="])
def test_bash_splits_at_an_equals_sign(
    runs: Home, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    assert "d12" in asked(monkeypatch, "bash", line).split()


def test_a_home_that_cannot_be_read_has_no_names(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "base_checkpoints").write_text("")
    for option in ("--resume", "--model-tag"):
        assert asked(monkeypatch, "fish", f"mlxchat train {option} ").strip() == ""
    monkeypatch.setenv("MLXCHAT_HOME", "~nobody-of-that-name/x")
    assert asked(monkeypatch, "fish", "mlxchat train --resume ").strip() == ""
    assert "builtin" in asked(monkeypatch, "fish", "mlxchat train --dataset ")


def test_every_description_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without what rich would take for its own markup."""
    scripts = []
    for name in NAMES:
        lines = asked(monkeypatch, "fish", f"mlxchat {name} --").splitlines()
        assert lines
        for line in lines:
            assert re.fullmatch(r"--[\w-]+(\t[^\t\[\]]+)?", line), line
        scripts.append(asked(monkeypatch, "zsh", f"mlxchat {name} --"))
        assert len(scripts[-1].splitlines()) == len(lines)
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input="\n".join(scripts), text=True, check=True)


@pytest.mark.parametrize(
    ("shell", "said"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef mlxchat"), ("fish", "complete --comm")],
)
def test_the_script_of_any_shell_can_be_had(
    monkeypatch: pytest.MonkeyPatch, shell: str, said: str
) -> None:
    monkeypatch.delenv(REQUEST, raising=False)
    script = printed("--show-completion", shell)
    assert said in script
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=script, text=True, check=True)


def test_without_a_shell_the_current_one_is_meant() -> None:
    assert with_shell_named(["--show-completion"]) == ["--show-completion", "current"]
    assert with_shell_named(["--install-completion", "zsh"]) == ["--install-completion", "zsh"]
    assert with_shell_named(["train", "--depth", "4"]) == ["train", "--depth", "4"]


def test_a_script_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    printed("--install-completion", "fish")
    script = tmp_path / ".config" / "fish" / "completions" / "mlxchat.fish"
    assert "complete --command mlxchat" in script.read_text()


def test_completion_loads_no_arrays(runs: Home) -> None:
    script = (
        "import sys\n"
        "from mlxchat.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'mlx', 'numpy', 'pyarrow', 'httpx'} & set(sys.modules)\n"
    )
    asking = {REQUEST: "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asking["_TYPER_COMPLETE_ARGS"] = "mlxchat chat --model-tag d"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **asking},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["d12", "d4", "d4-sft"]
    assert result.stderr == ""
