"""The commands `data fetch`, `data status` and `data remove`."""

import re
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlxchat.cli.completion import data_names
from mlxchat.cli.options import PATH, Json
from mlxchat.cli.questions import Yes, require_agreement
from mlxchat.cli.session import exit_promptly
from mlxchat.config.run import NAME_IN_WORDS, is_name
from mlxchat.config.sft import ENCODING, SKIP_BAD
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.files import UTF_8, stem
from mlxchat.data.shards import DATASETS, ENOUGH_SHARDS, dataset_names, status
from mlxchat.errors import ConfigError, LockedError, NotFound, command
from mlxchat.home import DEFAULT_DATASET, Home
from mlxchat.names import namesake, without_marks
from mlxchat.telemetry.events import Noted
from mlxchat.ui.console import Screen, say, say_json, table
from mlxchat.ui.text import amount, staying_in_words


def fetch_command(
    num_shards: Annotated[
        int | None,
        typer.Option(
            help=f"Training shards to download, 100 MB each. Default: {ENOUGH_SHARDS}, enough for "
            "hours of training on a laptop.",
            min=1,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"One of {dataset_names()}. Default: {DEFAULT_DATASET}. With --from: "
            "a name for your text, by default that of the file or folder.",
            metavar="NAME",
            autocompletion=data_names,
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
        str | None,
        typer.Option(help=f"{ENCODING} Default: {UTF_8}.", show_default=False, metavar="NAME"),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="With --from: replace the existing text of that name."),
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of the hub. Default: $HF_ENDPOINT, or https://huggingface.co.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=32, help="Parallel downloads. Default: 4.")
    ] = None,
    json: Json = False,
) -> None:
    """Download training shards and the validation shard, or make shards from your own text.

    Complete shards are not downloaded again, and interrupted downloads resume.
    """
    if source is None and (encoding or skip_bad or replace):
        raise typer.BadParameter(
            "--encoding, --skip-bad and --replace only apply to your own text, which --from names."
        )
    if source is None:
        _download(
            dataset or DEFAULT_DATASET, num_shards or ENOUGH_SHARDS, endpoint, workers or 4, json
        )
    elif num_shards or endpoint or workers:
        raise typer.BadParameter(
            "--from cannot be combined with --num-shards, --endpoint or --workers."
        )
    else:
        _ingest(source, dataset, encoding or UTF_8, skip_bad, replace, json)


def status_command(json: Json = False) -> None:
    """Show the datasets on disk."""
    home = Home.from_environment()
    found = status(home)
    if json:
        say_json([{**asdict(folder), "path": str(folder.path)} for folder in found])
    elif not found:
        get = command("data fetch", num_shards=ENOUGH_SHARDS)
        say(f"There is no data in {home.root}. Download some: {get}")
    else:
        table(
            ["dataset", "shards", "size", "validation", "unfinished", "folder"],
            [
                [
                    folder.name,
                    folder.shards,
                    amount(folder.bytes, "bytes"),
                    "yes" if folder.has_validation else "missing",
                    len(folder.partial_files),
                    str(folder.path),
                ]
                for folder in found
            ],
        )


def remove_command(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of a dataset on disk.",
            show_default=False,
            autocompletion=data_names,
        ),
    ],
    yes: Annotated[bool, Yes] = False,
    json: Json = False,
) -> None:
    """Remove a dataset. Shows its size and the runs that need it, and asks first.

    If it is your own text, its tokenizer is removed too; models have their own copies. A downloaded
    dataset can be downloaded again.
    """
    from mlxchat.data.removal import (
        find_dataset,
        remove_dataset,
        require_idle,
        tokenizer_of,
        use_of,
    )

    home = Home.from_environment()
    found = find_dataset(home, dataset)
    require_idle(found)
    tokenizer, use = tokenizer_of(home, found), use_of(home, found)
    needing = _unfinished_runs(home, found.name)
    if not json:
        say(f"{found.name}: {amount(found.shards, 'shards')}, {amount(use.bytes, 'bytes')}.")
        for line in staying_in_words(use):
            say(f"  {line}")
        if tokenizer:
            say("  Its tokenizer is removed too.")
        if needing:
            say(f"  These runs cannot be resumed without it: {', '.join(needing)}.")
    require_agreement("Remove it?", yes, json)
    remove_dataset(home, found)
    if json:
        facts = {"removed": found.name, **use._asdict(), "freed": use.freed}
        say_json({**facts, "unfinished_runs": needing})
    else:
        say(f"Removed {found.name} and freed {amount(use.freed, 'bytes')}.")


def _unfinished_runs(home: Home, dataset: str) -> list[str]:
    """Return the names of the runs on a dataset that could still be resumed.

    Raises:
        LockedError: one is being trained.
    """
    from mlxchat.report.runs import reading_from, summaries

    using = reading_from(dataset, home.data(dataset), summaries(home))
    for run in using:
        if run.state == "running":
            reads = "on" if run.saved_steps else "and has saved nothing yet: it may be reading"
            raise LockedError(
                f"The run {run.name} is being trained {reads} {dataset}.",
                "Wait for it to end, or stop it with Ctrl-C: it saves its work first.",
            )
    return [run.name for run in using if run.state != "finished"]


def _download(
    dataset: str, num_shards: int, endpoint: str | None, workers: int, json: bool
) -> None:
    from mlxchat.data.fetch import fetch
    from mlxchat.data.hub import Hub

    if dataset not in DATASETS:
        raise NotFound(
            f"There is no dataset {dataset!a:.120} to download.",
            f"Use --dataset {' or '.join(DATASETS)}, or your own text with --from PATH.",
        )
    folder = Home.from_environment().data(dataset)
    if not json:
        say(f"Licence of {dataset}: {DATASETS[dataset].licence_note}")
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


def _ingest(
    source: Path, dataset: str | None, encoding: str, skip_bad: bool, replace: bool, json: bool
) -> None:
    from mlxchat.data.ingest import ingest

    letters = without_marks(stem(source.resolve()))
    suggested = re.sub(r"[^A-Za-z0-9]+", "-", letters).strip("-")[:90] or "mine"
    dataset = dataset or suggested
    taken = dataset.lower() in {*DATASETS, BUILTIN}
    if taken or not is_name(dataset):
        why = "that is the name of another dataset" if taken else f"use {NAME_IN_WORDS}"
        raise ConfigError(
            f"Your text cannot be called {dataset!a:.120}: {why}.",
            f"Choose another name, such as: --dataset my-{suggested}",
        )
    home = Home.from_environment()
    folder = home.data(dataset)
    if other := namesake(folder):
        raise ConfigError(
            f"{dataset} and the text in {other} have names that differ only in case, which a "
            "Mac's disk does not distinguish.",
            "Choose another name with --dataset.",
        )
    stale = _unfinished_runs(home, dataset) if replace and folder.exists() else []
    with Screen(json) as screen:
        if stale:
            text = (
                "These runs were trained on the old text and can no longer be "
                f"resumed: {', '.join(stale)}."
            )
            screen.show(Noted(time.time(), text))
        summary = ingest(
            source, folder, screen.show, encoding=encoding, skip_bad=skip_bad, replace=replace
        )
    if json:
        say_json(asdict(summary))
        return
    say(
        f"In {folder}: {amount(summary.documents, 'documents')} with "
        f"{amount(summary.characters, 'characters')} in {amount(len(summary.shards), 'shards')}. "
        f"Held out for validation: {amount(summary.validation_documents, 'documents')}."
    )
    if replace and home.own_tokenizer(dataset).is_dir():
        renew = command("tokenizer train", dataset=dataset)
        say(f"Its tokenizer is still that of the old text. To train a new one: {renew}")
    say(_train_on(dataset))


def _train_on(dataset: str) -> str:
    named = {} if dataset == DEFAULT_DATASET else {"dataset": dataset}
    return f"Next, for an hour (or 10m, or 8h): {command('train', budget='1h', **named)}"
