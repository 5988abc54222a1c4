"""Folders that may be links to another disk: what is in them, and what to say where it is away."""

from pathlib import Path

from mlxchat.errors import MlxchatError


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none.

    Raises:
        OSError: it cannot be read, or is on a disk that is not there.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        if unplugged(folder):
            raise
        return []


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to what is not there and may have been one."""
    return path.is_dir() or (path.is_symlink() and not path.exists())


def unplugged(path: Path) -> MlxchatError | None:
    """What is to be said where a path, or a folder above it, is a link to what is not there."""
    links = (part for part in (path, *path.parents) if part.is_symlink())
    broken = next((link for link in links if not link.exists()), None)
    if broken is None:
        return None
    return MlxchatError(
        f"{broken} is a link to {broken.readlink()}, which is not there.",
        "Is its disk connected? Connect it, or remove the link to do without.",
    )


def require_connected(path: Path) -> None:
    """Check that a path, or a folder above it, is no link to what is not there.

    Raises:
        MlxchatError: one is.
    """
    if error := unplugged(path):
        raise error


def unreadable(path: Path, error: OSError) -> MlxchatError:
    """What is to be said of a folder or file that cannot be read."""
    away = unplugged(path) if isinstance(error, FileNotFoundError) else None
    return away or MlxchatError(
        f"{path} cannot be read: {error.strerror or error}.",
        "See whose it is, and who may read it.",
    )
