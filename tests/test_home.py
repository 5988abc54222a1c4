"""The home of mlxchat's files, and paths that begin in somebody's home."""

import os
from pathlib import Path

import pytest
from support.program import Program

from mlxchat.errors import ConfigError
from mlxchat.home import Home, cache_folder, expanded

NOBODY = "~nobody-of-that-name"
NOWHERE = f"{NOBODY}/x"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of whom neither the environment nor the system knows a home."""
    for name in ("HOME", "MLXCHAT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user id


def test_a_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expanded("~/x") == Path("/home/ada/x")
    assert expanded("x/~") == Path("x/~")
    with pytest.raises(ConfigError, match="home folder of nobody-of-that-name, but there is no"):
        expanded(NOWHERE)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_it_says_what_to_set() -> None:
    for asked in (Home.from_environment, cache_folder, lambda: expanded("~/x")):
        with pytest.raises(ConfigError, match="whose location is unknown") as raised:
            asked()
        assert "MLXCHAT_HOME" in raised.value.remedy


def test_the_cache_folder_may_begin_with_a_tilde_and_is_never_relative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("MLXCHAT_HOME")
    for given, used in (("~/big", "big"), ("big", ".cache"), ("", ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert Home.from_environment().root == Path("/home/ada") / used / "mlxchat"


@pytest.mark.parametrize(
    "command",
    [
        f"train --depth 1 --data-dir {NOWHERE}",
        f"train --depth 1 --tokenizer-dir {NOWHERE}",
        f"train --init-from {NOWHERE}",
        f"info --data-dir {NOWHERE}",
        f"info --init-from {NOWHERE}",
        f"sft --source {NOWHERE} --data builtin",
        f"tokenizer train --tokenizer-dir {NOWHERE}",
        f"chat --checkpoint {NOWHERE}",
        f"quantize --checkpoint {NOWHERE}",
        f"export --to mlx-lm --checkpoint {NOWHERE}",
        f"export --to mlx-lm --out {NOWHERE}",
        f"import {NOWHERE}",
        f"import here --tokenizer {NOWHERE}",
        f"eval chat --checkpoint {NOWHERE}",
        f"eval chat --task-data {NOWHERE}",
        f"eval chat --data {NOWHERE}",
        f"eval chat --data {NOWHERE}:2",
        f"checkpoints verify --checkpoint {NOWHERE}",
        f"data fetch --from {NOWHERE}",
        f"doctor --report {NOWHERE}",
    ],
)
def test_a_path_in_the_home_of_nobody_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = Program(monkeypatch, capsys)(*command.split())
    assert code == 1
    first, second = errors.splitlines()
    assert NOBODY in first and "there is no such user" in first
    assert second == "Write the full path. For a file of that name, put ./ before it."


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("command", ["data status", "train", "chat", "monitor --once"])
def test_a_command_without_a_home_says_what_to_set(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = Program(monkeypatch, capsys)(*command.split())
    assert code == 1
    assert len(errors.splitlines()) == 2 and "MLXCHAT_HOME" in errors
