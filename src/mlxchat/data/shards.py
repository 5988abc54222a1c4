"""The shards: which datasets there are, and what of them is on disk.

A dataset is a folder of parquet files with one column, ``text``, a document a row. The last file in
name order is validation, all others are training, in name order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlxchat.errors import ConfigError, DataError, NotFound, command
from mlxchat.home import DEFAULT_DATASET, Home

STREAMED = ".streamed"  # folder in a dataset's folder of what streaming fetched, and may delete
REVISION = ".revision"  # file in a dataset's folder with the commit that its shards are of
MAGIC = b"PAR1"  # what a parquet file starts and ends with


def shard_name(index: int) -> str:
    """The file name of shard ``index``."""
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
        """The file names of the first ``num_shards`` training shards, all for None.

        Raises:
            MlxchatError: the dataset does not have that many, or fewer than one are asked for.
        """
        count = self.last_shard if num_shards is None else num_shards
        if not 1 <= count <= self.last_shard:
            raise ConfigError(
                f"`num_shards={count}` cannot be had: {self.name} has {self.last_shard} training "
                "shards.",
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
            licence_note="CC BY-NC 4.0: non-commercial use only",
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


class ShardSource(Protocol):
    """Where a loader gets its shards from. A shard is on disk between acquire and release."""

    @property
    def training(self) -> tuple[str, ...]:
        """File names, in the order of an epoch."""

    @property
    def validation(self) -> str:
        """The file name of the validation shard."""

    def acquire(self, name: str) -> Path:
        """Block until the shard is on disk; it stays until released.

        Raises:
            MlxchatError: the shard cannot be had.
        """

    def release(self, name: str) -> None:
        """Say that the reader has moved on."""

    def close(self) -> None:
        """Stop whatever brings shards."""


class LocalShards:
    """Parquet files in a folder: all that are there when it is opened, or those that are named.

    Args:
        folder: that holds them.
        num_shards: train on the first so many; None for all but the last, which validates.
        names: of those to use, the one that validates last; the folder is not looked into then.

    Raises:
        MlxchatError: the folder does not exist, or holds fewer shards than asked for, or than two.
    """

    def __init__(
        self,
        folder: Path,
        num_shards: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        remedy = (
            f"Get some: {command('data fetch', num_shards=8)}. Bring your own: "
            f"{command('data fetch', from_='PATH')}. Or train with `streaming`."
        )
        if not folder.is_dir():
            raise NotFound(f"There is no folder {folder}, so no data.", remedy)
        names = shard_names(folder) if names is None else names
        if len(names) < 2:
            found = f"only one shard, {names[0]}" if names else "no shards"
            raise DataError(
                f"{folder} holds {found}; the last is validation, so two are the least.", remedy
            )
        self.folder = folder
        self.training = tuple(names[:-1][:num_shards])
        self.validation = names[-1]
        if num_shards is not None and num_shards > len(self.training):
            raise DataError(
                f"{folder} holds {len(self.training)} of the {num_shards} training shards asked "
                "for.",
                remedy,
            )

    def acquire(self, name: str) -> Path:
        """The path of a shard, checked to be one.

        Raises:
            MlxchatError: the file has gone or is no shard.
        """
        check_shard(self.folder / name)
        return self.folder / name

    def release(self, name: str) -> None:
        """Nothing: files stay."""

    def close(self) -> None:
        """Nothing to stop."""


@dataclass(frozen=True)
class FolderStatus:
    """What a dataset's folder holds, in ``bytes`` with what streaming keeps there for a while.

    ``partial_files`` are downloads begun and not finished; ``revision`` is the hub's commit that
    the shards are of, None where no hub said.
    """

    name: str
    path: Path
    shards: int
    bytes: int
    has_validation: bool
    partial_files: tuple[str, ...]
    revision: str | None


def status(home: Home) -> list[FolderStatus]:
    """The dataset folders under ``home``, in name order.

    A known dataset has its validation shard when the hub's last one is there; the user's own, when
    there are two files or more.
    """
    first = home.data(DEFAULT_DATASET)
    folders = sorted(
        path
        for path in first.parent.glob(f"{first.name}*")
        if path.is_dir() and (path == first or path.name.startswith(f"{first.name}_"))
    )
    return [_folder_status(folder, first) for folder in folders]


def _folder_status(folder: Path, first: Path) -> FolderStatus:
    name = DEFAULT_DATASET if folder == first else folder.name.removeprefix(f"{first.name}_")
    names = shard_names(folder)
    known = DATASETS.get(name)
    return FolderStatus(
        name=name,
        path=folder,
        shards=len(names),
        bytes=sum(
            path.stat().st_size
            for part in (folder, folder / STREAMED)
            for path in part.glob("*.parquet")
            if path.name[0] != "."
        ),
        has_validation=known.validation in names if known else len(names) >= 2,
        partial_files=tuple(sorted(path.name for path in folder.glob("*.parquet.*"))),
        revision=pinned_revision(folder),
    )


def pinned_revision(folder: Path) -> str | None:
    """The hub's commit that the shards in ``folder`` are of, None where none is recorded."""
    path = folder / REVISION
    return parse_revision(path.read_bytes()) if path.is_file() else None


def parse_revision(content: bytes) -> str | None:
    """The commit in a file `REVISION`; None for one that was not written to its end."""
    return content[:40].decode() if re.fullmatch(rb"[0-9a-f]{40}\n", content) else None


def shard_names(folder: Path) -> list[str]:
    """The names of the parquet files in ``folder``, sorted; those of hidden files are left out."""
    return sorted(path.name for path in folder.glob("*.parquet") if path.name[0] != ".")


def check_shard(path: Path) -> None:
    """Look at a shard's frame.

    Raises:
        MlxchatError: it does not exist or is none (`shard_fault`).
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", "Get it with: mlxchat data fetch")
    if fault := shard_fault(path):
        raise DataError(
            f"{path} {fault}.",
            "A shard is a parquet file with a column text of strings. One that came from the hub "
            "can be deleted and fetched again.",
        )


def shard_fault(path: Path) -> str | None:
    """What keeps a file from being a whole parquet file with a column ``text`` of strings.

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
        return f"has {found} text (its columns: {', '.join(names) or 'none'})"
    kind = schema.field("text").type
    if pa.types.is_dictionary(kind):  # as pandas writes categories
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return f"holds {kind}, not strings, in its column text"
    return None
