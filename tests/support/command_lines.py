"""The command lines in the documentation: found, taken apart, and parsed as the program would.

Nothing is run: the commands are those of the program with empty bodies.
"""

import functools
import inspect
import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from mlxchat.cli.app import COMMANDS, GROUPS
from mlxchat.cli.options import Command, options_from_models

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"", "bash", "console", "sh"}  # languages of blocks with commands
READ_WHEN_PARSED = {"--config", "--resume"}  # name files and runs, which a reader has
OPERATORS = {"|", "&&", "||", ";", "&"}


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in the blocks of a page."""
    for language, block in FENCED.findall(text):
        if language in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                yield from _split(line.removeprefix("$ "))


def inline_code(text: str) -> list[str]:
    """Return what a page has in backquotes outside its blocks, in one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))]


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = ""  # zsh takes a comment that is pasted after a command for arguments
    try:
        words = list(lexer)
    except ValueError:  # a quotation over several lines
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word in OPERATORS:
            yield command
            command = []
        else:
            command.append(word)


def arguments(words: list[str], program: str = "mlxchat") -> list[str] | None:
    """Return the arguments of a command of mlxchat; None if it is a command of something else."""
    if program not in words:
        return None
    before, after = words[: words.index(program)], words[words.index(program) + 1 :]
    if before[:2] == ["uv", "run"] or all(re.match(r"\w+=", word) for word in before):
        return after
    return None


def options() -> set[str]:
    """Return the names of all options of all commands."""
    found: set[str] = set()

    def walk(command: Any) -> None:
        for parameter in command.params:
            found.update(parameter.opts, parameter.secondary_opts)
        for child in getattr(command, "commands", {}).values():
            walk(child)

    walk(_program())
    return found | {"--help"}


def parse(given: list[str]) -> None:
    """Parse the arguments of mlxchat, and make the settings of them.

    Raises:
        Exception: they are none that the program takes.
    """
    words = [word for word in given if word != "--help"]
    if words != given:  # it ends before the rest is read; the command must exist
        assert tuple(words) in _names() or not words, f"there is no command {words}"
        return
    for option in READ_WHEN_PARSED.intersection(words):
        assert option in options(), f"there is no option {option}"
        place = words.index(option)
        words = words[:place] + words[place + 2 :]
    _program()(words, prog_name="mlxchat", standalone_mode=False)


def _names() -> set[tuple[str, ...]]:
    names = {(name,) for name in (*COMMANDS, *GROUPS)}
    return names | {(group, name) for group, (_, each) in GROUPS.items() for name in each}


@functools.cache
def _program() -> Any:
    app = typer.Typer(no_args_is_help=True)
    for name, command in COMMANDS.items():
        app.command(name)(options_from_models(_empty(command)))
    for name, (_, commands) in GROUPS.items():
        group = typer.Typer()
        for subname, command in commands.items():
            group.command(subname)(options_from_models(_empty(command)))
        app.add_typer(group, name=name)

    @app.callback()
    def root(version: bool = False) -> None:
        pass

    return typer.main.get_command(app)


def _empty(command: Command) -> Command:
    """Return a command with the same parameters that does nothing."""

    def does_nothing(**_: object) -> None:
        pass

    does_nothing.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return does_nothing
