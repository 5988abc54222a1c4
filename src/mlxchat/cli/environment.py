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
            "Folder for data, tokenizers, runs and logs. Default: mlxchat in $XDG_CACHE_HOME.",
        ),
        Variable(("XDG_CACHE_HOME",), "Folder for caches. Default: ~/.cache."),
        Variable(("HOME",), "Home folder, which ~ stands for."),
    ),
    "Downloads": (
        Variable(
            ("HF_ENDPOINT",),
            "Hub to download from, unless --endpoint is given. Default: https://huggingface.co.",
        ),
        Variable(
            ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
            "Your token for the hub. Default: the one that hf auth login stored.",
        ),
        Variable(("HF_TOKEN_PATH",), "File with that token. Default: token in $HF_HOME."),
        Variable(
            ("HF_HOME",), "The hub client's own folder. Default: huggingface in $XDG_CACHE_HOME."
        ),
        Variable(("HF_HUB_DISABLE_IMPLICIT_TOKEN",), "1: do not send a token."),
        Variable(("HF_HUB_OFFLINE",), "1: do not use the network."),
        Variable(
            ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"),
            "Proxy for https, for http, or for both, such as http://127.0.0.1:8080.",
        ),
        Variable(("NO_PROXY",), "Comma-separated hosts to reach without a proxy."),
        Variable(
            ("SSL_CERT_FILE", "SSL_CERT_DIR"),
            "File or folder of certificates to trust, in PEM format.",
        ),
    ),
    "Output": (
        Variable(("NO_COLOR",), "Any value: print without colours."),
        Variable(("COLUMNS", "LINES"), "Terminal size to assume."),
        Variable(("TERM",), "Type of terminal. dumb: plain lines instead of the live panel."),
        Variable(("MLXCHAT_DEBUG",), "1: print an error's traceback."),
    ),
    "Server": (
        Variable(
            ("MLXCHAT_API_KEY",),
            "Key that clients of mlxchat serve must send, unless --api-key is given.",
        ),
    ),
    "Trackers": (
        Variable(("WANDB_PROJECT", "TRACKIO_PROJECT"), "Project of --track. Default: mlxchat."),
        Variable(("WANDB_DIR",), "Folder for wandb's files. Default: the folder of the run's log."),
        Variable(
            ("WANDB_ERROR_REPORTING", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"),
            "The tracker libraries' reports about their own use, which mlxchat turns off unless "
            "you set these. Their other variables work as usual: see docs/tracking.md.",
        ),
    ),
    "Speed": (
        Variable(
            ("OPENBLAS_NUM_THREADS",), "Threads for matrix products on Linux CPUs. Default: all."
        ),
        Variable(
            ("CUDA_VISIBLE_DEVICES",),
            "NVIDIA GPUs to use, by number: one for each rank of --ranks.",
        ),
        Variable(
            ("MLX_BFS_MAX_WIDTH", "MLX_MAX_MB_PER_BUFFER", "MLX_PTX_CACHE_DIR"),
            "MLX's own settings, which mlxchat sets to suit training unless you set them.",
        ),
    ),
    "Ranks": (
        Variable(
            ("MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_IBV_DEVICES"),
            "A process's rank and how to reach the others: set by mlx.launch or --ranks.",
        ),
        Variable(("NCCL_HOST_IP", "NCCL_PORT"), "The same, on NVIDIA GPUs."),
        Variable(("OMPI_COMM_WORLD_RANK",), "The same, set by mpirun."),
        Variable(
            ("MLXCHAT_LAUNCHER", "MLXCHAT_EXIT_CODE_FILE"),
            "Set by mlxchat for the ranks it starts.",
        ),
    ),
}


def help_command(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help=f"A command, such as train or data fetch; or {TOPIC}, for the "
            "environment variables that mlxchat reads. Default: list all commands.",
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
    above = ["Environment variables that mlxchat reads. Options take precedence over them."]
    print_help(above, sections.items(), [])
