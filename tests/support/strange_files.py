"""Things that may lie in a folder in place of a file, each with a function that makes it."""

import os
from collections.abc import Callable
from pathlib import Path

GIB = 2**30


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(GIB)  # without taking the space


STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "large": _large,
}


def put_strange(kind: str, path: Path) -> None:
    """Make a thing of that kind at a path."""
    path.unlink(missing_ok=True)
    STRANGE[kind](path)
