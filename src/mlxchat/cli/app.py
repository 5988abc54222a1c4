"""`mlxchat`: the commands. Each imports what it works with when it runs, so that help is quick."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from mlxchat import __version__
from mlxchat.bench.settings import BenchConfig
from mlxchat.cli.options import options_from_models
from mlxchat.engine.options import Sampling
from mlxchat.errors import MlxchatError
from mlxchat.train.settings import DataConfig, PretrainConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a GPT on your own machine, and talk to it.",
    epilog="Begin with: mlxchat quickstart",
)
data_app = typer.Typer(no_args_is_help=True, help="Get training data, and see what is there.")
tokenizer_app = typer.Typer(no_args_is_help=True, help="Make a tokenizer.")
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
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


@app.command()
@options_from_models
def train(
    config: PretrainConfig,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would take, and do nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a model, or go on with a run that was interrupted.

    --depth alone determines the model; --budget chooses it to suit the time that there is. The same
    command goes on from the newest checkpoint.
    """
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


def main() -> None:
    """Run the command line; what the user can mend becomes two lines and exit code 1."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123  (closed by the caller)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
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
