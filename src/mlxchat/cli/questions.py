"""Questions to the person at the terminal."""

import sys

import typer

from mlxchat.errors import ConfigError
from mlxchat.ui.console import say

Yes = typer.Option("--yes", help="Do not ask.")


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
        reason = "a program cannot be asked" if json else "there is no terminal to ask at"
        raise ConfigError(
            f"Nothing was removed: {reason}.",
            "Give --yes to remove it without being asked.",
        )
    if not agreed(question):
        say("Nothing was removed.")
        raise typer.Exit(1)
