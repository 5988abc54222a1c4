"""The `--help` of every command: what typer knows of it, as `mlxchat.ui.help` prints it."""

import inspect
import re
from typing import Any, cast

from typer.core import TyperCommand, TyperGroup

from mlxchat.cli.completion import first_sentences, with_shell_named
from mlxchat.ui.help import HelpEntry, print_help

ARGUMENTS, OPTIONS = "Arguments", "Options"


class CommandWithHelp(TyperCommand):
    """A command that prints its own help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _show_help(self, ctx)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what a shell completes a word with."""
        return first_sentences(super().shell_complete(ctx, incomplete))


class GroupWithHelp(TyperGroup):
    """A group of commands that prints its own help."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the arguments of the group; those about completion may name a shell."""
        return super().parse_args(ctx, with_shell_named(args))

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what a shell completes a word with."""
        return first_sentences(super().shell_complete(ctx, incomplete))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _show_help(self, ctx)


def _show_help(command: TyperCommand | TyperGroup, ctx: Any) -> None:
    """Print usage, description, commands and options of a command."""
    usage = re.sub(r"\{(\w+)\}", r"\1", " ".join(command.get_usage(ctx).split()))
    above = [usage, *_paragraphs(command.help)]
    sections = {}
    if isinstance(command, TyperGroup):
        sections["Commands"] = _commands(command, ctx)
    print_help(above, (sections | _options(command, ctx)).items(), _paragraphs(command.epilog))


def _paragraphs(text: str | None) -> list[str]:
    """Split a text where it has empty lines, and join the lines of each paragraph."""
    blocks = inspect.cleandoc(text).split("\n\n") if text else []
    return [" ".join(block.split()) for block in blocks]


def _commands(group: TyperGroup, ctx: Any) -> list[HelpEntry]:
    """Return the commands of a group with the first paragraphs of their help."""
    commands = ((name, group.get_command(ctx, name)) for name in group.list_commands(ctx))
    return [
        (name, _paragraphs(found.help)[0] if found.help else "")
        for name, found in commands
        if found and not found.hidden
    ]


def _options(command: TyperCommand | TyperGroup, ctx: Any) -> dict[str, list[HelpEntry]]:
    """Return arguments and options by heading, in the order of their declaration."""
    sections: dict[str, list[HelpEntry]] = {ARGUMENTS: [], OPTIONS: []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:  # hidden
            continue
        argument = parameter.param_type_name == "argument"
        panel = ARGUMENTS if argument else getattr(parameter, "rich_help_panel", None) or OPTIONS
        shown = _argument(parameter) if argument else _shown(record[0])
        sections.setdefault(cast(str, panel), []).append((shown, record[1]))
    return {title: entries for title, entries in sections.items() if entries}


def _argument(argument: Any) -> str:
    """Return an argument's name; dots follow if it may be repeated."""
    return f"{argument.metavar or argument.name.upper()}{'...' if argument.nargs == -1 else ''}"


def _shown(name: str) -> str:
    """Return an option's names and the placeholder of its value, such as INT.

    Its range is in the description.
    """
    return re.sub(r"<(\w+)( range)?>", lambda found: found[1].upper(), name)
