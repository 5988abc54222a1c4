"""Completion in bash, zsh and fish: its scripts are typer's, the values of options are found here.

A shell asks at each press of the Tab key, so only names of folders are read, and no arrays.
"""

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.completion

from mlxchat.checkpoint import catalog, store
from mlxchat.config.stages import COMMAND_OF_STAGE
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.shards import DATASETS, dataset_folders
from mlxchat.errors import MlxchatError
from mlxchat.home import Home

REQUEST = "_MLXCHAT_COMPLETE"  # the variable in which a shell's script asks, by typer's rules
WIDE = "1000"  # columns: a description must stay on one line
_CURRENT = "current"
_OPTIONS = ("--install-completion", "--show-completion")

Shell = Literal["current", "bash", "zsh", "fish"]

_STAGES = {name: stage for stage, name in COMMAND_OF_STAGE.items()}


def run_names(incomplete: str) -> list[str]:
    """Return the names of the runs of all stages that begin so, if they have saved a step."""
    with suppress(MlxchatError):
        return _runs(Home.from_environment().stages, incomplete, store.steps)
    return []


def recorded_names(incomplete: str) -> list[str]:
    """Return the names of all runs that begin so, those among them of which there is only a log."""
    from mlxchat.report.places import all_runs

    with suppress(MlxchatError):
        names = dict.fromkeys(run.name for run in all_runs(Home.from_environment()))
        return [name for name in names if name.startswith(incomplete)]
    return []


def resumable_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the runs that a command can resume: those of its stage."""
    with suppress(MlxchatError):
        home, stage = Home.from_environment(), _STAGES.get(str(context.info_name))
        folders = [home.stage(stage)] if stage else home.stages
        return _runs(folders, incomplete, store.is_resumable)
    return []


def data_names(incomplete: str) -> list[str]:
    """Return the names of the datasets that begin so: those of the hub, and those on disk."""
    found = [*DATASETS, BUILTIN]
    with suppress(MlxchatError, OSError):
        found += dataset_folders(Home.from_environment())
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _runs(stages: Iterable[Path], incomplete: str, offered: Callable[[Path], object]) -> list[str]:
    """Return the names of the runs that begin so, and whose folder ``offered`` accepts."""
    named = [run for run in catalog.runs(stages) if run.name.startswith(incomplete)]
    found = []
    for run in named:
        with suppress(OSError):
            found += [run.name] if offered(run) else []
    return found


COMPLETIONS: dict[str, Callable[[str], list[str]]] = {"runs": run_names, "datasets": data_names}
"""The functions that list completions of a setting, by the word in its declaration."""


def _install(context: typer.Context, parameter: typer.CallbackParam, shell: str | None) -> None:
    if shell:
        typer.completion.install_callback(context, parameter, shell == _CURRENT or shell)


def _show(context: typer.Context, parameter: typer.CallbackParam, shell: str | None) -> None:
    if shell:
        typer.completion.show_callback(context, parameter, shell == _CURRENT or shell)


InstallCompletion = Annotated[
    Shell | None,
    typer.Option(
        _OPTIONS[0],
        callback=_install,
        is_eager=True,
        metavar="[SHELL]",
        help="Install completion of commands, options and run names for this shell, or "
        "for bash, zsh or fish.",
    ),
]
ShowCompletion = Annotated[
    Shell | None,
    typer.Option(
        _OPTIONS[1],
        callback=_show,
        is_eager=True,
        metavar="[SHELL]",
        help="Print the completion script, so that you can install it yourself.",
    ),
]


def with_shell_named(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which an option about completion without a shell names the current one.

    >>> with_shell_named(["--show-completion"])
    ['--show-completion', 'current']
    """
    named = []
    for number, word in enumerate(arguments):
        named.append(word)
        following = arguments[number + 1 : number + 2]
        if word in _OPTIONS and (not following or following[0].startswith("-")):
            named.append(_CURRENT)
    return named


def answer_shells(variables: MutableMapping[str, str]) -> None:
    """Prepare this process to answer a shell that asks for completions, if one does.

    bash takes an equals sign for a word of its own: ``--model-tag=d`` comes as three.
    """
    typer.completion.get_completion_inspect_parameters()  # makes typer know the shells
    if REQUEST not in variables:
        return
    variables["COLUMNS"] = WIDE
    words = variables.get("COMP_WORDS", "").split("\n")
    number = variables.get("COMP_CWORD", "")
    if "=" in words and number.isdecimal():
        current = int(number)
        kept = [index for index, word in enumerate(words) if word != "=" or index == current]
        texts = ["" if words[index] == "=" else words[index] for index in kept]
        before = sum(index < current for index in kept)
        variables.update(COMP_WORDS="\n".join(texts), COMP_CWORD=str(before))


def first_sentences(items: list[Any]) -> list[Any]:
    """Return what a shell is offered, each with only the first sentence of its description."""
    for item in items:
        if item.help:
            item.help = item.help.split(". ")[0].removesuffix(".")
    return items
