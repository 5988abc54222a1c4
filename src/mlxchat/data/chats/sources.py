"""Which conversations: files, folders and the built-in corpus, each with a weight.

Quick to import, so that settings can be checked before anything is read.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from mlxchat.errors import MlxchatError

BUILTIN = "builtin"
LARGEST_WEIGHT = 1000
SUFFIXES = (".jsonl", ".json", ".parquet")
HUB_MANIFEST = "manifest.json"  # lists the parquet files of a folder in the hub's layout

_FORM = (
    f"Give a file that ends in {', '.join(SUFFIXES)} or a folder of those, or {BUILTIN}; with a "
    f"weight up to {LARGEST_WEIGHT:,} if you like, such as chats.jsonl:3 or chats.jsonl:0.5."
)


@dataclass(frozen=True)
class Source:
    """Conversations to train on: each ``weight`` times an epoch.

    ``path`` is a file or a folder of files; None stands for the built-in corpus (a file of your own
    that is called so is named ``./builtin``).
    """

    path: Path | None
    weight: float = 1.0

    def __str__(self) -> str:
        return str(self.path or BUILTIN)


def parse(text: str) -> Source:
    """A source as one writes it: ``PATH``, or ``PATH:WEIGHT``; a path that exists is a path.

    Raises:
        MlxchatError: what follows the last colon is no weight.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Source(_path(text))
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not (head and 0 < weight <= LARGEST_WEIGHT):
        raise MlxchatError(f"{text} does not exist, and {tail!r} is no weight.", _FORM)
    return Source(_path(head), weight)


def files(source: Source) -> tuple[Path, ...]:
    """The files of a source, those of a folder sorted; hidden ones are left out.

    Raises:
        MlxchatError: there are none.
    """
    path = source.path
    if path is None:
        return ()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise MlxchatError(f"{path} is not one of {', '.join(SUFFIXES)}.", _FORM)
        return (path,)
    if not path.exists():
        raise MlxchatError(f"{path} does not exist.", _FORM)
    found = tuple(
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and file.name != HUB_MANIFEST
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise MlxchatError(f"There is no {', '.join(SUFFIXES)} in {path}.", _FORM)
    return found


def _path(text: str) -> Path | None:
    if not text:
        raise MlxchatError("A source of conversations has no name.", _FORM)
    return None if text == BUILTIN else Path(text)
