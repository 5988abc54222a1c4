"""Datasets as folders of shards: the datasets of the hub, and the shards on disk.

A dataset is a folder of parquet files with one column ``text``, one document per row. In name
order, the last file is validation and all others are training.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from mlxchat.data.files import columns_named
from mlxchat.disk import disk_use
from mlxchat.errors import ConfigError, DataError, NotFound, command
from mlxchat.home import DEFAULT_DATASET, Home

ENOUGH_SHARDS = 2  # training shards, for some hours of training on a laptop
STREAMED = ".streamed"  # subfolder for shards that streaming fetched and may delete
REVISION = ".revision"  # file in a dataset's folder with the commit of its shards
_REVISION_BYTES = 41  # of such a file
MAGIC = b"PAR1"  # the first and last bytes of a parquet file


def shard_name(index: int) -> str:
    """Return the file name of shard ``index``."""
    return f"shard_{index:05d}.parquet"


@dataclass(frozen=True)
class Dataset:
    """A dataset on the Hugging Face hub.

    Attributes:
        name: the name in `dataset`, and in the name of the folder on disk.
        repo: the repository on the hub, ``owner/name``.
        last_shard: the index of the last shard, which is validation; shards 0 up to it are
            training.
        licence_note: the licence, shown before a download.
        restriction: a restriction of the licence to mention in help texts, or empty.
    """

    name: str
    repo: str
    last_shard: int
    licence_note: str
    restriction: str = ""

    @property
    def validation(self) -> str:
        """The file name of the validation shard."""
        return shard_name(self.last_shard)

    def training(self, num_shards: int | None = None) -> tuple[str, ...]:
        """Return the file names of the first ``num_shards`` training shards; None means all.

        Raises:
            ConfigError: ``num_shards`` is less than 1 or more than the dataset has.
        """
        count = self.last_shard if num_shards is None else num_shards
        if not 1 <= count <= self.last_shard:
            raise ConfigError(
                f"`num_shards={count}` is not possible: {self.name} has {self.last_shard} "
                "training shards.",
                f"Give a number from 1 to {self.last_shard}.",
            )
        return tuple(shard_name(index) for index in range(count))


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name=DEFAULT_DATASET,
            repo="karpathy/fineweb-edu-100b-shuffle",
            last_shard=1822,
            licence_note="ODC-BY 1.0",
        ),
        Dataset(
            name="climbmix",
            repo="karpathy/climbmix-400b-shuffle",
            last_shard=6542,
            licence_note="CC BY-NC 4.0, non-commercial use only",
            restriction="licensed for non-commercial use only",
        ),
    )
}


def dataset_names() -> str:
    """List the datasets of the hub for help texts, with the restrictions of their licences.

    >>> dataset_names()
    'fineweb-edu, climbmix (licensed for non-commercial use only)'
    """
    return ", ".join(
        f"{dataset.name} ({dataset.restriction})" if dataset.restriction else dataset.name
        for dataset in DATASETS.values()
    )


def how_to_get(dataset: str, others: Sequence[str] = ()) -> str:
    """Return the remedy where a dataset has no shards on disk.

    Args:
        dataset: its name.
        others: the datasets on disk.

    >>> print(how_to_get("wikitext"))
    The hub has fineweb-edu and climbmix: mlxchat data fetch --dataset fineweb-edu --num-shards 2, \
for example. To use that name for your own text: mlxchat data fetch --from PATH --dataset wikitext
    """
    if dataset in DATASETS:
        named = {} if dataset == DEFAULT_DATASET else {"dataset": dataset}
        return (
            f"Download some: {command('data fetch', **named, num_shards=ENOUGH_SHARDS)}. "
            f"Use your own text: {command('data fetch', from_='PATH')}. Or train with `streaming`."
        )
    near = get_close_matches(dataset, (*others, *DATASETS), 1)
    on_disk = f"On disk: {', '.join(others)}. " if others else ""
    if near:
        return f"Did you mean `dataset={near[0]}`? {on_disk}".rstrip()
    return (
        f"{on_disk}The hub has {' and '.join(DATASETS)}: "
        f"{command('data fetch', dataset=DEFAULT_DATASET, num_shards=ENOUGH_SHARDS)}, for "
        "example. To use that name for your "
        f"own text: {command('data fetch', from_='PATH', dataset=dataset)}"
    )


class ShardSource(Protocol):
    """A source of shards for a loader. A shard is on disk between acquire and release."""

    @property
    def training(self) -> tuple[str, ...]:
        """File names, in the order of an epoch."""

    @property
    def validation(self) -> str:
        """The file name of the validation shard."""

    def acquire(self, name: str) -> Path:
        """Block until the shard is on disk, where it stays until it is released.

        Raises:
            MlxchatError: the shard is not available.
        """

    def release(self, name: str) -> None:
        """Release a shard that the reader has finished."""

    def close(self) -> None:
        """Stop fetching shards."""


class LocalShards:
    """The shards in a folder, as a `ShardSource`.

    Args:
        folder: the dataset's folder.
        num_shards: the number of training shards to use; None for all.
        names: the file names to use, validation last; None for all parquet files in the folder.
        remedy: what to do if there are none; by default, how to get the default dataset.

    Raises:
        NotFound: the folder does not exist, or holds fewer than two shards, as one does whose
            download has failed.
        DataError: it holds fewer training shards than ``num_shards``.
    """

    def __init__(
        self,
        folder: Path,
        num_shards: int | None = None,
        names: Sequence[str] | None = None,
        remedy: str = "",
    ) -> None:
        remedy = remedy or how_to_get(DEFAULT_DATASET)
        if not folder.is_dir():
            raise NotFound(f"There is no data: the folder {folder} does not exist.", remedy)
        names = shard_names(folder) if names is None else names
        if len(names) < 2:
            found = f"only one shard, {names[0]}" if names else "no shards"
            raise NotFound(
                f"{folder} contains {found}; at least two are needed, since the last one is used "
                "for validation.",
                remedy,
            )
        self.folder = folder
        self.training = tuple(names[:-1][:num_shards])
        self.validation = names[-1]
        if num_shards is not None and num_shards > len(self.training):
            raise DataError(
                f"{folder} contains only {len(self.training)} of the {num_shards} training shards "
                "needed.",
                remedy,
            )

    def acquire(self, name: str) -> Path:
        """Check a shard and return its path.

        Raises:
            NotFound: the file no longer exists.
            DataError: it is not a shard.
        """
        check_shard(self.folder / name)
        return self.folder / name

    def release(self, name: str) -> None:
        """Do nothing: the files stay."""

    def close(self) -> None:
        """Do nothing: there is nothing to stop."""


@dataclass(frozen=True)
class FolderStatus:
    """The contents of a dataset's folder.

    Attributes:
        bytes: the size of all shards, including those that streaming keeps for a while.
        partial_files: unfinished downloads.
        revision: the hub's commit of the shards; None if it is unknown.
    """

    name: str
    path: Path
    shards: int
    bytes: int
    has_validation: bool
    partial_files: tuple[str, ...]
    revision: str | None


def status(home: Home) -> list[FolderStatus]:
    """Return the status of the dataset folders under ``home``, in name order.

    A dataset of the hub has its validation shard if the hub's last shard is there; a user's own
    dataset, if it has at least two files.
    """
    return [_folder_status(name, path) for name, path in dataset_folders(home).items()]


def dataset_folders(home: Home) -> dict[str, Path]:
    """Return the folders of datasets under ``home`` by the datasets' names, in their order."""
    first = home.data(DEFAULT_DATASET)
    folders = sorted(
        path
        for path in first.parent.glob(f"{first.name}*")
        if path.is_dir() and (path == first or path.name.startswith(f"{first.name}_"))
    )
    return {
        DEFAULT_DATASET if path == first else path.name.removeprefix(f"{first.name}_"): path
        for path in folders
    }


def _folder_status(name: str, folder: Path) -> FolderStatus:
    names = shard_names(folder)
    known = DATASETS.get(name)
    return FolderStatus(
        name=name,
        path=folder,
        shards=len(names),
        bytes=disk_use(
            path
            for part in (folder, folder / STREAMED)
            for path in part.glob("*.parquet")
            if path.name[0] != "."
        ).bytes,
        has_validation=known.validation in names if known else len(names) >= 2,
        partial_files=tuple(sorted(path.name for path in folder.glob("*.parquet.*"))),
        revision=pinned_revision(folder),
    )


def pinned_revision(folder: Path) -> str | None:
    """Return the recorded commit of the shards in ``folder``, or None."""
    path = folder / REVISION
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return parse_revision(file.read(_REVISION_BYTES + 1))


def parse_revision(content: bytes) -> str | None:
    """Return the commit in a `REVISION` file; None if the file is incomplete."""
    return content[:40].decode() if re.fullmatch(rb"[0-9a-f]{40}\n", content) else None


def shard_names(folder: Path) -> list[str]:
    """Return the names of the parquet files in ``folder``, sorted, without hidden files."""
    return sorted(path.name for path in folder.glob("*.parquet") if path.name[0] != ".")


def check_shard(path: Path) -> None:
    """Check that a file is a shard, by its schema.

    Raises:
        NotFound: the file does not exist.
        DataError: it is not a shard (`shard_fault`).
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Download it: mlxchat data fetch")
    if fault := shard_fault(path):
        raise DataError(
            f"{path} {fault}.",
            "A shard is a parquet file with a column of strings called text. A downloaded one can "
            "be deleted and downloaded again.",
        )


def shard_fault(path: Path) -> str | None:
    """Describe why a file is not a complete parquet file with a column ``text`` of strings.

    Strings may be stored as bytes; whether these are text shows when they are read.

    Returns:
        The rest of a sentence that begins with the file's name; None for a shard.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        names = schema.names
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        with path.open("rb") as stream:
            begins_well = stream.read(len(MAGIC)) == MAGIC
        return "is truncated or damaged" if begins_well else "is not a parquet file"
    if (count := names.count("text")) != 1:
        found = "no column" if count == 0 else f"{count} columns"
        return f"has {found} text (its columns: {columns_named(names) or 'none'})"
    kind = schema.field("text").type
    if pa.types.is_dictionary(kind):  # as pandas writes categories
        kind = kind.value_type
    strings = (pa.string(), pa.large_string(), pa.string_view())
    if kind not in (*strings, pa.binary(), pa.large_binary(), pa.binary_view()):
        return f"has {kind}, not strings, in its column text"
    return None
