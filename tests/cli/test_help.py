"""The `--help` of the commands."""

import re

import pytest
import typer.main
from typer.testing import CliRunner

from mlxchat.cli.app import COMMANDS, GROUPS, app

PATHS = [
    [],
    *([name] for name in COMMANDS),
    *([name] for name in GROUPS),
    *([name, sub] for name, (_, commands) in GROUPS.items() for sub in commands),
]


def shown(monkeypatch: pytest.MonkeyPatch, path: list[str], columns: int) -> str:
    """Return the help of a command as a terminal of that width shows it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    return CliRunner().invoke(app, [*path, "--help"]).output


@pytest.mark.parametrize("columns", [40, 80, 160])
@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_help_of_every_command_fits(
    monkeypatch: pytest.MonkeyPatch, path: list[str], columns: int
) -> None:
    lines = shown(monkeypatch, path, columns).splitlines()
    assert max(len(line) for line in lines) <= columns
    assert not any("<bool>" in line or line.endswith(" ") for line in lines)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_no_option_takes_a_whole_settings_model(
    monkeypatch: pytest.MonkeyPatch, path: list[str]
) -> None:
    """Such as `lora`, which is a group of options: its name would be that of a class."""
    names = re.findall(r"^  --[\w-]+ (\w+)", shown(monkeypatch, path, 80), re.M)
    assert not any(name.endswith(("CONFIG", "TRAINING")) for name in names)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_placeholder_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, path: list[str]
) -> None:
    """NAME, SIZE, TIME or URL, the same for the same: STR says nothing."""
    assert re.findall(r"^ +(--[\w-]+) STR\b", shown(monkeypatch, path, 160), re.M) == []


def test_every_option_is_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, ["train"], 80)
    group = typer.main.get_command(app)
    parameters = group.commands["train"].params  # type: ignore[attr-defined]
    missing = [p.opts[0] for p in parameters if not re.search(rf"^  {p.opts[0]}\b", text, re.M)]
    assert not missing


def test_the_options_that_most_users_want_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    options = re.findall(r"^  (--[\w-]+)", shown(monkeypatch, ["train"], 80), re.M)
    assert options[:5] == ["--depth", "--budget", "--dataset", "--model-tag", "--memory-limit"]


def test_descriptions_stand_beside_names_and_below_them_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = shown(monkeypatch, ["sft"], 80)
    assert re.search(r"^  --data \S+ +\w", wide, re.M)
    narrow = shown(monkeypatch, ["sft"], 40).splitlines()
    index = next(i for i, line in enumerate(narrow) if line.startswith("  --data "))
    assert narrow[index + 1].startswith("      ")


def test_the_help_of_a_group_lists_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"^  fetch +Download", shown(monkeypatch, ["data"], 80), re.M)


@pytest.mark.parametrize("columns", [0, 1, 10**20])
def test_a_width_that_no_terminal_has_is_not_used(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    lines = shown(monkeypatch, ["train"], columns).splitlines()
    assert lines[0].startswith("Usage: ")
    assert max(len(line) for line in lines) <= 100


def test_settings_that_are_models_are_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their fields are, or nothing is: no text on a command line is a whole model."""
    assert not re.search(r"^  --lora ", shown(monkeypatch, ["scaling"], 80), re.M)
    assert re.search(r"^  --lora {3,}\w", shown(monkeypatch, ["train"], 80), re.M)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_usage_has_the_names_of_arguments_in_capitals(
    monkeypatch: pytest.MonkeyPatch, path: list[str]
) -> None:
    [usage, *_] = shown(monkeypatch, path, 100).split("\n\n")
    arguments = usage.split()[2 + len(path) :]  # behind "Usage: mlxchat" and the command
    assert arguments == [name.upper() for name in arguments]
