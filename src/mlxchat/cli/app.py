"""The `mlxchat` program: its table of commands, their errors and their output.

Each command is declared, with its options and its body, in the module of its group. Everything that
loads MLX, numpy, pyarrow or httpx is imported inside the command that needs it, so that `--help`
answers at once.
"""

import os
import signal
import sys
import threading
import warnings
from typing import Annotated

import typer
import typer.main

from mlxchat import __version__
from mlxchat.cli.bench import bench_command
from mlxchat.cli.chat import chat_command
from mlxchat.cli.checkpoints import list_command, prune_command, verify_command
from mlxchat.cli.completion import InstallCompletion, ShowCompletion, answer_shells
from mlxchat.cli.data import fetch_command, remove_command, status_command
from mlxchat.cli.doctor import doctor_command
from mlxchat.cli.environment import TOPIC, help_command
from mlxchat.cli.evaluate import eval_chat_command
from mlxchat.cli.evaluate_base import eval_base_command
from mlxchat.cli.exchange import export_command, import_command
from mlxchat.cli.failures import exit_code, lost_output, report_unforeseen
from mlxchat.cli.fuse import fuse_command
from mlxchat.cli.help import CommandWithHelp, GroupWithHelp
from mlxchat.cli.monitor import monitor_command
from mlxchat.cli.options import Command, options_from_models
from mlxchat.cli.quantize import quantize_command
from mlxchat.cli.quickstart import quickstart_command
from mlxchat.cli.ranks import report_exit_code
from mlxchat.cli.report import report_command
from mlxchat.cli.rl import rl_command
from mlxchat.cli.runs import (
    runs_compare_command,
    runs_copy_command,
    runs_export_command,
    runs_list_command,
    runs_remove_command,
    runs_rename_command,
    runs_show_command,
)
from mlxchat.cli.scaling import scaling_command
from mlxchat.cli.serve import serve_command
from mlxchat.cli.train import (
    info_command,
    mid_command,
    sft_command,
    tokenizer_train_command,
    train_command,
)
from mlxchat.ui import console
from mlxchat.ui.output import standard_output

COMMANDS: dict[str, Command] = {
    "train": train_command,
    "mid": mid_command,
    "sft": sft_command,
    "rl": rl_command,
    "info": info_command,
    "scaling": scaling_command,
    "chat": chat_command,
    "serve": serve_command,
    "quantize": quantize_command,
    "fuse": fuse_command,
    "import": import_command,
    "export": export_command,
    "quickstart": quickstart_command,
    "bench": bench_command,
    "monitor": monitor_command,
    "report": report_command,
    "doctor": doctor_command,
    "help": help_command,
}
GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "runs": (
        "List, compare, rename, copy, remove and export runs.",
        {
            "list": runs_list_command,
            "show": runs_show_command,
            "compare": runs_compare_command,
            "rename": runs_rename_command,
            "copy": runs_copy_command,
            "remove": runs_remove_command,
            "export": runs_export_command,
        },
    ),
    "data": (
        "Download training data, prepare your own, or remove it.",
        {"fetch": fetch_command, "status": status_command, "remove": remove_command},
    ),
    "tokenizer": ("Train a tokenizer.", {"train": tokenizer_train_command}),
    "checkpoints": (
        "List, check and remove checkpoints.",
        {"list": list_command, "verify": verify_command, "prune": prune_command},
    ),
    "eval": (
        "Measure how good a model is.",
        {"base": eval_base_command, "chat": eval_chat_command},
    ),
}

app = typer.Typer(
    cls=GroupWithHelp,
    no_args_is_help=True,
    add_completion=False,  # typer's options know no other shell than the current one
    pretty_exceptions_enable=False,
    help="Train a GPT on your own machine, and talk to it.",
    epilog=f"Start with: mlxchat quickstart\n\nEnvironment variables: mlxchat help {TOPIC}",
)
for name, command in COMMANDS.items():
    app.command(name, cls=CommandWithHelp)(options_from_models(command))
for name, (purpose, commands) in GROUPS.items():
    group = typer.Typer(cls=GroupWithHelp, no_args_is_help=True, help=purpose)
    for subname, command in commands.items():
        group.command(subname, cls=CommandWithHelp)(options_from_models(command))
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        console.say(f"mlxchat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    install_completion: InstallCompletion = None,
    show_completion: ShowCompletion = None,
) -> None:
    pass


def main() -> None:
    """Run the command line, and end the process with its exit code (docs/files.md lists them)."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123  (the program was given none)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.showwarning = _show_warning
    sys.excepthook = report_unforeseen
    threading.excepthook = _report_thread
    answer_shells(os.environ)
    program = typer.main.get_command(app)  # calling `app` itself would replace the hook
    with standard_output() as (out, err):
        code = exit_code(lambda: program(prog_name="mlxchat", standalone_mode=False), program)
        lost = lost_output(out, err)
    report_exit_code(code or lost)
    sys.exit(code or lost)


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    if not issubclass(failed.exc_type, SystemExit):
        report_unforeseen(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning on one line; Python would add a line of source code."""
    console.warning(str(message))
