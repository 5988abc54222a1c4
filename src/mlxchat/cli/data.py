"""What `mlxchat data` does."""

import json as json_format
import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from mlxchat.cli.session import ending_soon
from mlxchat.config.run import NAME_PATTERN
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.shards import DATASETS, status
from mlxchat.errors import ConfigError, NotFound
from mlxchat.home import Home
from mlxchat.ui.console import Screen, say, table


def fetch_shards(
    dataset: str, num_shards: int, endpoint: str | None, workers: int, json: bool
) -> None:
    """Download shards of a dataset of the hub."""
    from mlxchat.data.download import fetch
    from mlxchat.data.hub import Hub

    if dataset not in DATASETS:
        raise NotFound(
            f"The hub has no dataset {dataset} for mlxchat.",
            f"Use --dataset {' or '.join(DATASETS)}; your own text comes in with --from PATH.",
        )
    folder = Home.from_environment().data(dataset)
    if not json:
        say(f"{dataset}: {DATASETS[dataset].licence_note}")
    with (
        ending_soon(),
        Screen(json) as screen,
        closing(Hub.from_environment(endpoint)) as hub,
    ):
        paths = fetch(folder, DATASETS[dataset], num_shards, hub, screen.show, workers)
    if not json:
        say(f"{len(paths) - 1} training shards and the validation shard are in {folder}.")
        say(f"Next: mlxchat train --depth 4{_option(dataset)}")


def ingest_text(source: Path, dataset: str | None, json: bool) -> None:
    """Make shards of the user's own text, in a dataset of that name or else of the file's."""
    from mlxchat.data.ingest import ingest

    suggested = re.sub(r"[^A-Za-z0-9]+", "-", source.resolve().stem).strip("-")[:100] or "mine"
    dataset = dataset or suggested
    if dataset in DATASETS or dataset == BUILTIN or not re.match(NAME_PATTERN, dataset):
        raise ConfigError(
            f"{dataset} cannot be the name of your text: it is taken, or has other characters than "
            "letters, digits, '.', '_' and '-'.",
            f"Give it another with --dataset, such as: --dataset my-{suggested}",
        )
    folder = Home.from_environment().data(dataset)
    with Screen(json) as screen:
        summary = ingest(source, folder, screen.show)
    if json:
        say(json_format.dumps(asdict(summary), default=str))
        return
    say(
        f"{summary.documents:,} documents, {summary.characters:,} characters, in "
        f"{len(summary.shards)} shards in {folder}; {summary.validation_documents:,} of them for "
        "validation."
    )
    say(f"Next: mlxchat train --depth 4{_option(dataset)}")


def show_status(json: bool) -> None:
    """Show the datasets on disk."""
    home = Home.from_environment()
    found = status(home)
    if json:
        say(json_format.dumps([{**asdict(folder), "path": str(folder.path)} for folder in found]))
    elif not found:
        say(f"There is no data in {home.root}. Get some: mlxchat data fetch --num-shards 8")
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


def _option(dataset: str) -> str:
    return "" if dataset == "fineweb-edu" else f" --dataset {dataset}"
