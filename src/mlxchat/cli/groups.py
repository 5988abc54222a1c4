"""The commands of `mlxchat data`, `tokenizer`, `checkpoints` and `eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mlxchat.cli.options import (
    Checkpoint,
    Json,
    ModelTag,
    SavedStep,
    options_from_models,
    require_one_place,
)
from mlxchat.config.inference import ChatEvalConfig
from mlxchat.config.pretrain import MAX_CHARACTERS, DataConfig

data_app = typer.Typer(no_args_is_help=True, help="Get training data, and see what is there.")
tokenizer_app = typer.Typer(no_args_is_help=True, help="Make a tokenizer.")
checkpoints_app = typer.Typer(no_args_is_help=True, help="Look after what training has saved.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure how good a model is.")

Tag = Annotated[
    str | None, typer.Option(help="Name of a run. Default: all runs.", show_default=False)
]


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
    max_chars: Annotated[
        int, typer.Option(min=1, help="Characters to read at most.")
    ] = MAX_CHARACTERS,
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
    checkpoint: Checkpoint = None,
    json: Json = False,
) -> None:
    """Compare every file with its checksum: is it what was saved?

    Exit code 1 where one is not. What is loaded is checked in any case.
    """
    from mlxchat.cli import checkpoints

    require_one_place(model_tag, step, checkpoint)
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


@eval_app.command("chat")
@options_from_models
def eval_chat(
    model_tag: ModelTag = None,
    step: SavedStep = None,
    checkpoint: Checkpoint = None,
    json: Json = False,
    *,
    config: ChatEvalConfig,
) -> None:
    """Have a model solve tasks, and foresee conversations that it was not trained on.

    Of a question with choices the letter counts that the model finds likeliest;
    other answers are written at temperature 0, with the calculator. Beside each
    score is what guessing gets; centered, that is 0, and all right is 1.

    Tasks are read from local files; spelling needs none.
    """
    from mlxchat.cli import evaluate

    require_one_place(model_tag, step, checkpoint)
    evaluate.evaluate_chat(config, model_tag, step, checkpoint, json)
