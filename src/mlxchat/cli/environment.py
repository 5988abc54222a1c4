"""The environment variables that the program reads, each with what it does, and `mlxchat help`."""

from typing import Annotated, NamedTuple

import typer

from mlxchat.ui.help import print_help

TOPIC = "environment"


class Variable(NamedTuple):
    """An environment variable, or several that do the same."""

    names: tuple[str, ...]
    purpose: str


VARIABLES_BY_TOPIC: dict[str, tuple[Variable, ...]] = {
    "Files": (
        Variable(
            ("MLXCHAT_HOME",),
            "Folder of data, tokenizers, runs and logs. Default: mlxchat in $XDG_CACHE_HOME.",
        ),
        Variable(("XDG_CACHE_HOME",), "Folder of caches. Default: ~/.cache."),
        Variable(("HOME",), "Home folder, for which ~ stands."),
    ),
    "Downloads": (
        Variable(
            ("HF_ENDPOINT",),
            "Hub to download from; --endpoint goes before it. Default: https://huggingface.co.",
        ),
        Variable(
            ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
            "Your token for the hub. Default: the one that hf auth login has stored.",
        ),
        Variable(("HF_TOKEN_PATH",), "File of that token. Default: token in $HF_HOME."),
        Variable(("HF_HOME",), "The hub's own folder. Default: huggingface in $XDG_CACHE_HOME."),
        Variable(("HF_HUB_DISABLE_IMPLICIT_TOKEN",), "1: send no token."),
        Variable(("HF_HUB_OFFLINE",), "1: do not use the network."),
        Variable(
            ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"),
            "Proxy of https, of http, or of both, such as http://127.0.0.1:8080.",
        ),
        Variable(("NO_PROXY",), "Hosts that are asked without a proxy, separated by commas."),
        Variable(
            ("SSL_CERT_FILE", "SSL_CERT_DIR"),
            "File or folder of certificates to trust, in PEM form.",
        ),
    ),
    "Output": (
        Variable(("NO_COLOR",), "Anything: print without colours."),
        Variable(("COLUMNS", "LINES"), "Size to take the terminal for."),
        Variable(("TERM",), "Kind of terminal. dumb: plain lines in place of the panel."),
        Variable(("MLXCHAT_DEBUG",), "1: print the traceback of an error."),
    ),
    "Server": (
        Variable(
            ("MLXCHAT_API_KEY",),
            "Key that mlxchat serve asks its clients for; --api-key goes before it.",
        ),
    ),
    "Trackers": (
        Variable(("WANDB_PROJECT", "TRACKIO_PROJECT"), "Project of --track. Default: mlxchat."),
        Variable(("WANDB_DIR",), "Folder of wandb's files. Default: that of the run's log."),
        Variable(
            ("WANDB_ERROR_REPORTING", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"),
            "What the trackers' libraries report about themselves, which mlxchat turns off unless "
            "you set it. Their other variables have their effect, too: see docs/tracking.md.",
        ),
    ),
    "Speed": (
        Variable(
            ("OPENBLAS_NUM_THREADS",), "Threads of matrix products on Linux CPUs. Default: all."
        ),
        Variable(
            ("CUDA_VISIBLE_DEVICES",), "NVIDIA GPUs to use, by number, one for each of --ranks."
        ),
        Variable(
            ("MLX_BFS_MAX_WIDTH", "MLX_MAX_MB_PER_BUFFER", "MLX_PTX_CACHE_DIR"),
            "MLX's own, which mlxchat sets to what suits training, unless you do.",
        ),
    ),
    "Ranks": (
        Variable(
            ("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_IBV_DEVICES"),
            "Which rank a process is, and how to reach the others: set by mlx.launch or --ranks.",
        ),
        Variable(("NCCL_HOST_IP", "NCCL_PORT"), "The same, on NVIDIA GPUs."),
        Variable(("OMPI_COMM_WORLD_RANK",), "The same, set by mpirun."),
        Variable(
            ("MLXCHAT_LAUNCHER", "MLXCHAT_EXIT_CODE_FILE"),
            "Set by mlxchat for the ranks that it starts.",
        ),
    ),
}


def help_command(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help=f"A command, such as train or data fetch; or {TOPIC}, for the environment "
            "variables that mlxchat reads. Default: all commands.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the help of a command, or the environment variables."""
    from mlxchat.cli.app import app

    if command == [TOPIC]:
        show_variables()
    else:
        program = typer.main.get_command(app)
        program([*(command or ()), "--help"], "mlxchat", standalone_mode=False)


def show_variables() -> None:
    """Print the environment variables that the program reads."""
    sections = {
        topic: [(", ".join(variable.names), variable.purpose) for variable in variables]
        for topic, variables in VARIABLES_BY_TOPIC.items()
    }
    above = ["Environment variables that mlxchat reads. Options go before them."]
    print_help(above, sections.items(), [])
