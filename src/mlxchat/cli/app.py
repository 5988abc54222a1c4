"""`mlxchat`: the commands. Each imports what it works with when it runs, so that help is quick."""

import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from mlxchat import __version__
from mlxchat.bench.settings import BenchConfig
from mlxchat.cli.options import options_from_models
from mlxchat.engine.options import Sampling
from mlxchat.errors import MlxchatError
from mlxchat.model.quantization import Quantization
from mlxchat.train.settings import DataConfig, PretrainConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a GPT on your own machine, and talk to it.",
    epilog="Begin with: mlxchat quickstart",
)
data_app = typer.Typer(no_args_is_help=True, help="Get training data, and see what is there.")
tokenizer_app = typer.Typer(no_args_is_help=True, help="Make a tokenizer.")
checkpoints_app = typer.Typer(no_args_is_help=True, help="Look after what training has saved.")
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(checkpoints_app, name="checkpoints")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Tag = Annotated[
    str | None, typer.Option(help="Name of a run. Default: all runs.", show_default=False)
]
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


@data_app.command("fetch")
def data_fetch(
    num_shards: Annotated[
        int | None,
        typer.Option(help="Training shards to download, 100 MB each. Default: 8.", min=1),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="fineweb-edu (the default) or climbmix (licensed for non-commercial use only); "
            "with --from a name for your text. Default: the file's or folder's.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Your own text instead: a .txt, .jsonl or .parquet file, or a folder."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="The hub. Default: $HF_ENDPOINT, or https://huggingface.co.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=32, help="Downloads at a time. Default: 4.")
    ] = None,
    json: Json = False,
) -> None:
    """Download training shards and the validation shard, or make shards of your own text.

    What is there already is not downloaded again, and what was interrupted goes on.
    """
    from mlxchat.cli import data

    if source is None:
        data.fetch_shards(dataset or "fineweb-edu", num_shards or 8, endpoint, workers or 4, json)
    elif num_shards or endpoint or workers:
        raise typer.BadParameter("what says how to download does not go with --from.")
    else:
        data.ingest_text(source, dataset, json)


@data_app.command("status")
def data_status(json: Json = False) -> None:
    """Show which shards are on disk."""
    from mlxchat.cli import data

    data.show_status(json)


@tokenizer_app.command("train")
@options_from_models
def tokenizer_train(
    config: DataConfig,
    max_chars: Annotated[int, typer.Option(min=1, help="Characters to read at most.")] = 10**9 * 2,
    json: Json = False,
) -> None:
    """Learn a tokenizer from the training shards, replacing the one that is there.

    Models keep the tokenizer that they were trained with.
    """
    from mlxchat.cli import training

    training.train_tokenizer(config, max_chars, json)


@checkpoints_app.command("list")
def checkpoints_list(model_tag: Tag = None, json: Json = False) -> None:
    """Show the saved steps of all runs, quantized copies among them, and what they take."""
    from mlxchat.cli import checkpoints

    checkpoints.show_list(model_tag, json)


@checkpoints_app.command("verify")
def checkpoints_verify(
    model_tag: Tag = None,
    step: Annotated[
        int | None, typer.Option(help="Saved step. Default: all of them.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A model's directory, wherever it is.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Compare every file with its checksum: is it what was saved?

    Exit code 1 where one is not. What is loaded is checked in any case.
    """
    from mlxchat.cli import checkpoints

    if checkpoint and (model_tag or step is not None):
        raise typer.BadParameter("--checkpoint does not go with --model-tag or --step.")
    checkpoints.verify(model_tag, step, checkpoint, json)


@checkpoints_app.command("prune")
def checkpoints_prune(
    model_tag: Tag = None,
    keep: Annotated[int, typer.Option(min=1, help="Newest steps of a run to keep.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove all but the newest steps of each run, once the newest one is found intact."""
    from mlxchat.cli import checkpoints

    checkpoints.prune(model_tag, keep, dry_run, json)


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
        from mlxchat.cli import supervising

        arguments = [word for word in sys.argv[1:] if word not in ("--supervise", "--fresh")]
        raise typer.Exit(supervising.train(arguments, config.tag, fresh, json))
    from mlxchat.cli import planning, training

    if dry_run:
        planning.dry_run(config, fresh, json)
    else:
        training.train(config, fresh, json)


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
    model_tag: Annotated[
        str | None,
        typer.Option(help="Name of the run. Default: the one saved last.", show_default=False),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Saved step. Default: the newest.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A model's directory, wherever it is.", show_default=False),
    ] = None,
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
    from mlxchat.cli import chatting

    if checkpoint and (model_tag or step is not None):
        raise typer.BadParameter("--checkpoint does not go with --model-tag or --step.")
    saved, name = chatting.load(model_tag, step, checkpoint)
    chatting.talk(saved, name, sampling, seed, max_tokens, prompt)


@app.command()
@options_from_models
def quantize(
    quantization: Quantization,
    model_tag: Annotated[
        str | None,
        typer.Option(help="Name of the run. Default: the one saved last.", show_default=False),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Saved step. Default: the newest.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A model's directory, wherever it is.", show_default=False),
    ] = None,
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
    from mlxchat.cli import quantizing

    if checkpoint and (model_tag or step is not None):
        raise typer.BadParameter("--checkpoint does not go with --model-tag or --step.")
    quantizing.quantize_saved(model_tag, step, checkpoint, quantization, eval_tokens, json)


@app.command()
def quickstart(
    questions: Annotated[
        int, typer.Option(min=1, max=1000, help="Held-out questions to ask the model.")
    ] = 200,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Train a small model on the built-in corpus, ask it questions, and talk with it.

    Needs no network and takes a few minutes at most.
    """
    from mlxchat.cli import training

    training.quickstart(questions, fresh, json)


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
    from mlxchat.cli import benching

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
    from mlxchat.cli import monitoring

    if interval is not None and (once or json):
        raise typer.BadParameter("--interval does not go with --once or --json.")
    monitoring.monitor(once, json, interval or 2.0)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In place of Python's way, which adds a line of source."""
    from mlxchat.ui import console

    console.warning(str(message))


def main() -> None:
    """Run the command line; what the user can mend becomes two lines and exit code 1."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123  (closed by the caller)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    warnings.showwarning = _show_warning
    try:
        app()
    except (MlxchatError, OSError) as error:
        if os.environ.get("MLXCHAT_DEBUG") == "1":
            raise
        from mlxchat.ui import console

        if isinstance(error, MlxchatError):
            console.error(error.problem, error.remedy)
        else:
            where = f"{error.filename}: " if error.filename else ""
            console.error(
                f"{where}{error.strerror or error}.",
                "Is there room on the disk, and may you write there? MLXCHAT_HOME names the place.",
            )
        sys.exit(1)
    except (RuntimeError, MemoryError):  # MLX's, when the device fails it
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)
