"""The commands `data fetch` and `data status`."""

import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlxchat.cli.options import PATH, Json
from mlxchat.cli.session import exit_promptly
from mlxchat.config.run import NAME_IN_WORDS, is_name
from mlxchat.config.sft import ENCODING, SKIP_BAD
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.files import UTF_8, stem
from mlxchat.data.shards import DATASETS, dataset_names, status
from mlxchat.errors import ConfigError, NotFound, command
from mlxchat.home import DEFAULT_DATASET, Home
from mlxchat.names import namesake, without_marks
from mlxchat.ui.console import Screen, say, say_json, table
from mlxchat.ui.text import amount


def fetch_command(
    num_shards: Annotated[
        int | None,
        typer.Option(help="Training shards to download, 100 MB each. Default: 8.", min=1),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"One of {dataset_names()}; default: {DEFAULT_DATASET}. With --from, a name for "
            "your text; default: the name of the file or folder.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Use your own text: a .txt, .md, .rst, .jsonl, .csv or .parquet file, compressed "
            "(.gz, .bz2, .xz) or not, or a folder of them.",
            **PATH,
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help=f"{ENCODING} Default: {UTF_8}.", show_default=False)
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of the hub. Default: $HF_ENDPOINT, or https://huggingface.co.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=32, help="Parallel downloads. Default: 4.")
    ] = None,
    json: Json = False,
) -> None:
    """Download training shards and the validation shard, or make shards of your own text.

    Shards that are complete are not downloaded again; interrupted downloads resume.
    """
    if source is None and (encoding or skip_bad):
        raise typer.BadParameter("--encoding and --skip-bad are for your own text: give --from.")
    if source is None:
        _download(dataset or DEFAULT_DATASET, num_shards or 8, endpoint, workers or 4, json)
    elif num_shards or endpoint or workers:
        raise typer.BadParameter(
            "--from cannot be combined with --num-shards, --endpoint or --workers."
        )
    else:
        _ingest(source, dataset, encoding or UTF_8, skip_bad, json)


def status_command(json: Json = False) -> None:
    """Show the datasets on disk."""
    home = Home.from_environment()
    found = status(home)
    if json:
        say_json([{**asdict(folder), "path": str(folder.path)} for folder in found])
    elif not found:
        say(f"{home.root} has no data. Get some: mlxchat data fetch --num-shards 8")
    else:
        table(
            ["dataset", "shards", "MB", "validation", "unfinished", "folder"],
            [
                [
                    folder.name,
                    folder.shards,
                    round(folder.bytes / 1e6),
                    "yes" if folder.has_validation else "missing",
                    len(folder.partial_files),
                    str(folder.path),
                ]
                for folder in found
            ],
        )


def _download(
    dataset: str, num_shards: int, endpoint: str | None, workers: int, json: bool
) -> None:
    from mlxchat.data.fetch import fetch
    from mlxchat.data.hub import Hub

    if dataset not in DATASETS:
        raise NotFound(
            f"mlxchat knows no dataset {dataset!a:.120} on the hub.",
            f"Use --dataset {' or '.join(DATASETS)}, or your own text with --from PATH.",
        )
    folder = Home.from_environment().data(dataset)
    if not json:
        say(f"{dataset}: {DATASETS[dataset].licence_note}")
    with (
        exit_promptly(),
        Screen(json) as screen,
        closing(Hub.from_environment(endpoint)) as hub,
    ):
        paths = fetch(folder, DATASETS[dataset], num_shards, hub, screen.show, workers)
    if not json:
        shards = amount(len(paths) - 1, "training shards")
        say(f"In {folder}: {shards} and the validation shard.")
        say(_train_on(dataset))


def _ingest(source: Path, dataset: str | None, encoding: str, skip_bad: bool, json: bool) -> None:
    from mlxchat.data.ingest import ingest

    letters = without_marks(stem(source.resolve()))
    suggested = re.sub(r"[^A-Za-z0-9]+", "-", letters).strip("-")[:90] or "mine"
    dataset = dataset or suggested
    taken = dataset.lower() in {*DATASETS, BUILTIN}
    if taken or not is_name(dataset):
        why = "it is that of another dataset" if taken else f"use {NAME_IN_WORDS}"
        raise ConfigError(
            f"{dataset!a:.120} cannot be the name of your text: {why}.",
            f"Choose another name, such as: --dataset my-{suggested}",
        )
    folder = Home.from_environment().data(dataset)
    if other := namesake(folder):
        raise ConfigError(
            f"{dataset} differs from the name of the text in {other} in case only: on the disk of "
            "a Mac both are one.",
            "Choose another name with --dataset.",
        )
    with Screen(json) as screen:
        summary = ingest(source, folder, screen.show, encoding=encoding, skip_bad=skip_bad)
    if json:
        say_json(asdict(summary))
        return
    say(
        f"In {folder}: {amount(summary.documents, 'documents')} with "
        f"{amount(summary.characters, 'characters')} in {amount(len(summary.shards), 'shards')}, "
        f"{summary.validation_documents:,} of them for validation."
    )
    say(_train_on(dataset))


def _train_on(dataset: str) -> str:
    named = {} if dataset == DEFAULT_DATASET else {"dataset": dataset}
    return f"Next, for an hour (or 10m, or 8h): {command('train', budget='1h', **named)}"
