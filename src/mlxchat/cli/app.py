"""The `mlxchat` program: its table of commands, and how errors become messages and exit codes.

Each command is declared, with its options and its body, in the module of its group. Everything that
loads MLX, numpy, pyarrow or httpx is imported inside the command that needs it, so that `--help`
answers at once.
"""

import os
import signal
import sys
import traceback
import warnings
from typing import Annotated

import typer

from mlxchat import __version__
from mlxchat.cli.bench import bench_command
from mlxchat.cli.chat import chat_command
from mlxchat.cli.checkpoints import list_command, prune_command, verify_command
from mlxchat.cli.data import fetch_command, status_command
from mlxchat.cli.doctor import doctor_command
from mlxchat.cli.evaluate import eval_chat_command
from mlxchat.cli.exchange import export_command, import_command
from mlxchat.cli.monitor import monitor_command
from mlxchat.cli.options import Command, options_from_models
from mlxchat.cli.quantize import quantize_command
from mlxchat.cli.quickstart import quickstart_command
from mlxchat.cli.train import info_command, sft_command, tokenizer_train_command, train_command
from mlxchat.errors import BackendError, LockedError, MlxchatError

COMMANDS: dict[str, Command] = {
    "train": train_command,
    "sft": sft_command,
    "info": info_command,
    "chat": chat_command,
    "quantize": quantize_command,
    "import": import_command,
    "export": export_command,
    "quickstart": quickstart_command,
    "bench": bench_command,
    "monitor": monitor_command,
    "doctor": doctor_command,
}
GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "data": (
        "Download training data, or prepare your own.",
        {"fetch": fetch_command, "status": status_command},
    ),
    "tokenizer": ("Train a tokenizer.", {"train": tokenizer_train_command}),
    "checkpoints": (
        "List, check and remove saved steps.",
        {"list": list_command, "verify": verify_command, "prune": prune_command},
    ),
    "eval": ("Measure how good a model is.", {"chat": eval_chat_command}),
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a GPT on your own machine, and talk to it.",
    epilog="Begin with: mlxchat quickstart",
)
for name, command in COMMANDS.items():
    app.command(name)(options_from_models(command))
for name, (purpose, commands) in GROUPS.items():
    group = typer.Typer(no_args_is_help=True, help=purpose)
    for subname, command in commands.items():
        group.command(subname)(options_from_models(command))
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlxchat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. An error the user can fix becomes two lines and exit code 1.

    75 (``EX_TEMPFAIL``) means that another process holds what is needed, so that a retry can work.
    70 (``EX_SOFTWARE``) means that the backend or its device failed. With ``MLXCHAT_DEBUG=1`` the
    traceback is printed first; nothing else changes.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123  (closed by the caller)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    warnings.showwarning = _show_warning
    try:
        app()
    except (MlxchatError, OSError) as error:
        if os.environ.get("MLXCHAT_DEBUG") == "1":
            traceback.print_exc()
        sys.exit(_report(error))
    except (RuntimeError, MemoryError):  # raised by MLX when its device fails
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)


def _report(error: MlxchatError | OSError) -> int:
    """Print an error in two lines, and return the exit code."""
    from mlxchat.ui import console

    if isinstance(error, MlxchatError):
        console.error(error.problem, error.remedy)
    else:
        where = f"{error.filename}: " if error.filename else ""
        console.error(
            f"{where}{error.strerror or error}.",
            "Check that the disk has room and that you may write there. MLXCHAT_HOME sets the "
            "folder.",
        )
    if isinstance(error, LockedError):
        return os.EX_TEMPFAIL
    return os.EX_SOFTWARE if isinstance(error, BackendError) else 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning on one line; Python would add a line of source code."""
    from mlxchat.ui import console

    console.warning(str(message))
