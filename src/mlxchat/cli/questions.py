"""Questions to the person at the terminal."""

import sys

import typer

from mlxchat.errors import ConfigError
from mlxchat.ui.console import say

Yes = typer.Option("--yes", help="Do not ask for confirmation.")


def agreed(question: str) -> bool:
    """Ask a question; Ctrl-D is a no.

    Raises:
        KeyboardInterrupt: the answer is Ctrl-C.
    """
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        say("")
        return False
    except KeyboardInterrupt:
        say("")  # what follows begins a line
        raise


def can_ask() -> bool:
    """Return whether there is somebody at a terminal who could answer a question."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def require_agreement(question: str, yes: bool, json: bool) -> None:
    """Ask whether to remove something, unless ``yes`` answers already.

    Raises:
        ConfigError: there is nobody to ask; with ``json`` it is a program.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if json or not can_ask():
        reason = (
            "with --json nobody can be asked to confirm"
            if json
            else ("there is no terminal on which to ask for confirmation")
        )
        raise ConfigError(
            f"Nothing was removed: {reason}.",
            "Add --yes to remove it without confirmation.",
        )
    if not agreed(question):
        say("Nothing was removed.")
        raise typer.Exit(1)
