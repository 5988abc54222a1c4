"""What several commands have is called the same in all of them, and in the chat and in Python."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from mlxchat import Model
from mlxchat.cli.app import app
from mlxchat.config.inference import ChatSettings
from mlxchat.trained import SamplingOptions
from mlxchat.ui.chat_commands import SLASH_COMMANDS, purposes

MODEL = {"--model-tag", "--step", "--checkpoint", "--dtype"}
SAMPLING = {"--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty"}
SHARED = {
    "chat": MODEL | SAMPLING | {"--seed", "--max-tokens", "--system"},
    "serve": MODEL | SAMPLING | {"--seed", "--max-tokens", "--system"},
    "eval chat": MODEL | {"--max-tokens"},  # the likeliest tokens: nothing is drawn
}
OTHER_NAMES = {  # of the same, in other programs
    *(
        "--model",
        "--tag",
        "--model-path",
        "--checkpoint-dir",
        "--system-prompt",
        "--system-message",
    ),
    *("--temp", "--topk", "--topp", "--repeat-penalty", "--max-new-tokens", "--max-length"),
}


def options(command: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each command's name with its options."""
    yield name, {option for parameter in command.params for option in parameter.opts}
    for child, group in getattr(command, "commands", {}).items():
        yield from options(group, f"{name} {child}".strip())


OPTIONS = dict(options(typer.main.get_command(app)))


@pytest.mark.parametrize("command", sorted(SHARED.keys() & OPTIONS.keys()))
def test_commands_have_the_shared_options(command: str) -> None:
    assert SHARED[command] <= OPTIONS[command]


def test_no_command_has_another_name_for_them() -> None:
    assert {name: found for name, given in OPTIONS.items() if (found := given & OTHER_NAMES)} == {}


def test_the_settings_of_a_chat_have_one_name_everywhere() -> None:
    settings = ChatSettings.model_fields.keys()
    named = {f"--{setting.replace('_', '-')}" for setting in settings}
    assert named == SHARED["chat"] - MODEL

    class Chat:
        settings = ChatSettings()

    commands = purposes(Chat()).keys() - SLASH_COMMANDS.keys()
    assert {f"--{command.removeprefix('/')}" for command in commands} == named
    keywords = Model.chat.__annotations__.keys() - {"sampling", "return"}
    assert keywords | SamplingOptions.__annotations__.keys() == settings
