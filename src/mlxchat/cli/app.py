"""`mlxchat`: the commands. Each imports what it works with when it runs, so that help is quick."""

import os
import signal
import sys
import time
import traceback
import warnings
from typing import Annotated

import typer

from mlxchat import __version__
from mlxchat.cli.exchange import export, import_model
from mlxchat.cli.groups import checkpoints_app, data_app, eval_app, tokenizer_app
from mlxchat.cli.options import (
    Checkpoint,
    Json,
    ModelTag,
    SavedStep,
    options_from_models,
    require_one_place,
)
from mlxchat.config.inference import BenchConfig, Sampling
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.sft import SftConfig
from mlxchat.errors import LockedError, MlxchatError
from mlxchat.model.quantization import Quantization

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a GPT on your own machine, and talk to it.",
    epilog="Begin with: mlxchat quickstart",
)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(eval_app, name="eval")

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Begin anew; an earlier run of that name is set aside.")
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mlxchat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@options_from_models
def train(
    config: PretrainConfig,
    fresh: Fresh = False,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise", help="Start it again from its last checkpoint when its process crashes."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would take, and do nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a model, or go on with a run that was interrupted.

    --depth alone determines the model; --budget chooses it to suit the time that there is. The same
    command goes on from the newest checkpoint.
    """
    if supervise and dry_run:
        raise typer.BadParameter("--supervise does not go with --dry-run.")
    if supervise:
        from mlxchat.cli import supervise as supervising

        arguments = [word for word in sys.argv[1:] if word not in ("--supervise", "--fresh")]
        raise typer.Exit(supervising.train(arguments, config.tag, fresh, json))
    from mlxchat.cli import planning, training

    if dry_run:
        planning.dry_run(config, fresh, json)
    else:
        training.train(config, fresh, json)


@app.command()
@options_from_models
def sft(config: SftConfig, fresh: Fresh = False, json: Json = False) -> None:
    """Fine-tune a model on conversations, so that it answers.

    Only what the assistant says is learnt, and conversations stay whole. Rows
    of a file may be {"messages": [{"role": ..., "content": ...}]}, bare lists of
    messages, ShareGPT, Alpaca, GSM8K or multiple choice; what became of each is
    said. The same command goes on from the newest checkpoint.
    """
    from mlxchat.cli import finetuning

    finetuning.sft(config, fresh, json)


@app.command()
@options_from_models
def info(config: PretrainConfig, json: Json = False) -> None:
    """Show what a model is and what training it takes, on this machine.

    Takes the same options as train.
    """
    from mlxchat.cli import planning

    planning.info(config, json)


@app.command()
@options_from_models
def chat(
    model_tag: ModelTag = None,
    step: SavedStep = None,
    checkpoint: Checkpoint = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Answer this and end.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens in an answer at most.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the random draws.")] = 42,
    *,
    sampling: Sampling,
) -> None:
    """Talk to a model.

    One trained on conversations answers; a base model continues your text.

    Text piped into the command is taken as one message.
    """
    from mlxchat.cli.chat import load, talk

    require_one_place(model_tag, step, checkpoint)
    saved, name = load(model_tag, step, checkpoint)
    talk(saved, name, sampling, seed, max_tokens, prompt)


@app.command()
@options_from_models
def quantize(
    quantization: Quantization,
    model_tag: ModelTag = None,
    step: SavedStep = None,
    checkpoint: Checkpoint = None,
    eval_tokens: Annotated[
        int,
        typer.Option(min=0, help="Validation tokens, before and after; 0 for no validation."),
    ] = 16_384,
    json: Json = False,
) -> None:
    """Save a copy of a model in fewer bits: about a sixth of its size with 4.

    The copy is a run of its own, such as d12-4bit, and is talked with as any
    other; mlx-lm loads it where the architecture is classic. It cannot be
    trained any further. The model that it was made of stays as it is.

    How much was lost is told in bits per byte of the validation text, where
    that is on disk.
    """
    from mlxchat.cli.quantize import quantize_saved

    require_one_place(model_tag, step, checkpoint)
    quantize_saved(model_tag, step, checkpoint, quantization, eval_tokens, json)


app.command("import")(import_model)
app.command("export")(export)


@app.command()
def quickstart(
    questions: Annotated[
        int, typer.Option(min=1, max=1000, help="Held-out questions to ask the model.")
    ] = 200,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Train a small model on the built-in corpus, then to answer; ask it questions, talk with it.

    Needs no network and takes a few minutes at most.
    """
    from mlxchat.cli import quickstart

    quickstart.quickstart(questions, fresh, json)


@app.command()
@options_from_models
def bench(
    config: BenchConfig,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table, to paste into an issue.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure how fast this machine trains and generates, in a minute or so.

    Uses random weights and tokens; needs no data and writes nothing.
    """
    begun = time.time()
    from mlxchat.cli import bench as benching

    if json and markdown:
        raise typer.BadParameter("--json does not go with --markdown.")
    benching.bench(config, begun, json, markdown)


@app.command()
def monitor(
    once: Annotated[
        bool, typer.Option("--once", help="Print how things are now, and end.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=0.2, max=3600, help="Seconds from one look to the next. Default: 2."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for programs, and end.")
    ] = False,
) -> None:
    """Watch memory, disk, and every run as it trains, from another terminal.

    Shows the machine's memory and its pressure, each run with its progress, loss
    curve, time left and checkpoints, and what each mlxchat process holds.

    Runs tell of themselves in MLXCHAT_HOME: those of another machine that shares
    it are shown too, and so is one that was killed.

    q or Ctrl-C ends the watching; the runs go on.
    """
    from mlxchat.cli import monitor as monitoring

    if interval is not None and (once or json):
        raise typer.BadParameter("--interval does not go with --once or --json.")
    monitoring.monitor(once, json, interval or 2.0)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In place of Python's way, which adds a line of source."""
    from mlxchat.ui import console

    console.warning(str(message))


def main() -> None:
    """Run the command line; what the user can mend becomes two lines and exit code 1.

    75 (``EX_TEMPFAIL``) says that another process holds what is needed: later it may work. 70
    (``EX_SOFTWARE``) is a failure of the backend. With ``MLXCHAT_DEBUG=1`` the traceback is shown
    before, and nothing else changes.
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
        from mlxchat.ui import console

        if isinstance(error, MlxchatError):
            console.error(error.problem, error.remedy)
        else:
            where = f"{error.filename}: " if error.filename else ""
            console.error(
                f"{where}{error.strerror or error}.",
                "Is there room on the disk, and may you write there? MLXCHAT_HOME names the place.",
            )
        sys.exit(os.EX_TEMPFAIL if isinstance(error, LockedError) else 1)
    except (RuntimeError, MemoryError):  # MLX's, when the device fails it
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)
