"""Removes a dataset: its shards and, if it is a user's own text, its tokenizer."""

import secrets
import shutil
from pathlib import Path

from mlxchat.data.shards import DATASETS, STREAMED, FolderStatus, status
from mlxchat.data.streaming import LOCK
from mlxchat.disk import UNFINISHED, DiskUse, disk_use, storing
from mlxchat.errors import LockedError, NotFound
from mlxchat.home import Home
from mlxchat.locks import Lock

_WAIT = "Wait for it to finish, or stop it with Ctrl-C."


def find_dataset(home: Home, name: str) -> FolderStatus:
    """Return what is on disk of a dataset.

    Raises:
        NotFound: nothing is; the message names those that are there.
    """
    found = {dataset.name: dataset for dataset in status(home)}
    if name in found:
        return found[name]
    listed = f"There are: {', '.join(found)}." if found else "There are none."
    raise NotFound(f"There is no dataset called {name!a:.120} on disk.", listed)


def tokenizer_of(home: Home, dataset: FolderStatus) -> Path | None:
    """Return the folder of a dataset's own tokenizer; None if it has none of its own."""
    folder = home.own_tokenizer(dataset.name)
    return folder if dataset.name not in DATASETS and folder.is_dir() else None


def use_of(home: Home, dataset: FolderStatus) -> DiskUse:
    """Return the bytes of all that goes with a dataset: unfinished downloads and its tokenizer too.

    Args:
        home: where it is.
        dataset: the dataset.
    """
    tokenizer = tokenizer_of(home, dataset)
    return disk_use([dataset.path, *([tokenizer] if tokenizer else [])])


def require_idle(dataset: FolderStatus) -> None:
    """Check that no process downloads a dataset or streams it.

    Raises:
        LockedError: one does.
        DiskError: a lock cannot be looked at.
    """
    locks = [dataset.path / name for name in dataset.partial_files]
    locks += [dataset.path / STREAMED / LOCK] if (dataset.path / STREAMED / LOCK).exists() else []
    for path in locks:
        with storing(path):
            lock = Lock.take(path)
        if lock is None:
            raise LockedError(f"Another process is downloading shards of {dataset.name}.", _WAIT)
        lock.release()


def remove_dataset(home: Home, dataset: FolderStatus) -> None:
    """Remove a dataset from the disk.

    A crash leaves nothing that has its name; the next `mlxchat data fetch` of one's own text
    removes the rest.

    Raises:
        LockedError: another process downloads it.
        DiskError: it cannot be removed.
    """
    require_idle(dataset)
    tokenizer = tokenizer_of(home, dataset)
    for folder in (tokenizer, dataset.path):
        if folder is None:
            continue
        with storing(f"{folder.parent} without {folder.name}", "check its owner"):
            if folder.is_symlink():
                shutil.rmtree(folder.resolve())
                folder.unlink()
                continue
            going = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{UNFINISHED}")
            folder.rename(going)
            shutil.rmtree(going)
