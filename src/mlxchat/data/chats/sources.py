"""Sources of conversations: files, folders and the built-in corpus, each with a weight.

Quick to import, so that settings can be checked before anything is read.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlxchat.errors import DataError, NotFound
from mlxchat.home import expanded

BUILTIN = "builtin"
LARGEST_WEIGHT = 1000
VALIDATION_SHARE = 0.02  # of conversations, held out by default
SUFFIXES = (".jsonl", ".json", ".parquet")
HUB_MANIFEST = "manifest.json"  # lists the parquet files of a folder in the hub's layout
_FOR_EVALUATION = re.compile(r"(test|validation|dev)(-\d+-of-\d+)?", re.IGNORECASE)

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
    """Parse ``PATH`` or ``PATH:WEIGHT``; a path that exists is never split.

    Raises:
        NotFound: the path does not exist, and the text after its last colon is not a weight.
        ConfigError: it begins with ``~`` and the name of nobody.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or expanded(text).exists():
        return Source(_path(text))
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not (head and 0 < weight <= LARGEST_WEIGHT):
        raise NotFound(f"{text} does not exist, and {tail!r} is not a weight.", _FORM)
    return Source(_path(head), weight)


class Listing(NamedTuple):
    """The files of a source, and the folders and files in it that are left out of them."""

    files: tuple[Path, ...] = ()
    for_evaluation: tuple[Path, ...] = ()


def listing(source: Source) -> Listing:
    """Return the files of a source, sorted.

    Hidden files in a folder are left out, and so are its splits for evaluation: files and folders
    called test, validation or dev. Such a split can be given as a source itself.

    Raises:
        NotFound: the path does not exist.
        DataError: there are no files to train on.
    """
    path = source.path
    if path is None:
        return Listing()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} is not one of {', '.join(SUFFIXES)}.", _FORM)
        return Listing((path,))
    if not path.exists():
        raise NotFound(f"{path} does not exist.", _FORM)
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in SUFFIXES
        and file.name != HUB_MANIFEST
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise DataError(f"There is no {', '.join(SUFFIXES)} in {path}.", _FORM)
    splits = {file: split for file in found if (split := _split_for_evaluation(file, path))}
    if len(splits) == len(found):
        raise DataError(
            f"All that is in {path} is for evaluation: {splits[found[0]]}, for example.",
            "To train on that all the same, name it itself.",
        )
    files = tuple(file for file in found if file not in splits)
    return Listing(files, tuple(dict.fromkeys(splits.values())))


def _split_for_evaluation(file: Path, root: Path) -> Path | None:
    """The file, or the outermost folder of it within ``root``, that is such a split."""
    inside = file.relative_to(root)
    for depth, name in enumerate(inside.with_suffix("").parts, start=1):
        if _FOR_EVALUATION.fullmatch(name):
            return root.joinpath(*inside.parts[:depth])
    return None


def _path(text: str) -> Path | None:
    if not text:
        raise DataError("A source of conversations has no name.", _FORM)
    return None if text == BUILTIN else expanded(text)
