"""Sources of conversations: files, folders, the built-in corpus and tasks, each with a weight.

Quick to import, so that settings can be checked before anything is read.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlxchat.data.files import COMPRESSED, ROWS, TEXT, UTF_8, found_in, kind, stem
from mlxchat.data.questions.choice import GENERATED, TaskChoice
from mlxchat.errors import DataError, NotFound, command
from mlxchat.home import expanded, from_here

BUILTIN = "builtin"
LARGEST_WEIGHT = 1000
VALIDATION_SHARE = 0.02  # of conversations, held out by default
HUB_MANIFEST = "manifest.json"  # lists the parquet files of a folder in the hub's layout
_FOR_EVALUATION = re.compile(r"(test|validation|dev)(-\d+-of-\d+)?", re.IGNORECASE)

_FORM = (
    f"Give a file that ends in {', '.join(ROWS)} (compressed: {', '.join(COMPRESSED)} after that), "
    f"a folder of those, {BUILTIN}, or a task: {', '.join(GENERATED)}; with a weight up to "
    f"{LARGEST_WEIGHT:,} if you like, such as chats.jsonl:3 or chats.jsonl:0.5."
)


@dataclass(frozen=True)
class Source:
    """Conversations to train on.

    Attributes:
        path: a file or a folder of files; None for the built-in corpus or a task. (A file with the
            same name as one of these is given as ``./builtin``.)
        weight: how many times each conversation is used per epoch.
        encoding: the encoding of text without a byte-order mark.
        skip_bad: skip lines and rows that cannot be read, like those that cannot be used.
        task: a task whose training questions are used, with their right answers.
    """

    path: Path | None
    weight: float = 1.0
    encoding: str = UTF_8
    skip_bad: bool = False
    task: TaskChoice | None = None

    def __str__(self) -> str:
        return str(from_here(self.path) if self.path else self.task or BUILTIN)

    @property
    def is_corpus(self) -> bool:
        """Whether it is the built-in corpus."""
        return self.path is None and self.task is None


def is_named_source(name: str) -> bool:
    """Return whether a name is that of the built-in corpus or of a task."""
    return name == BUILTIN or TaskChoice.parse(name) is not None


def parse(text: str, encoding: str = UTF_8, skip_bad: bool = False) -> Source:
    """Parse ``PATH`` or ``PATH:WEIGHT``; a path that exists is never split.

    Raises:
        NotFound: the path does not exist, and the text after its last colon is not a weight.
        ConfigError: it begins with ``~`` and a name that is no user's, or names a task that is not
            asked so.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or expanded(text).exists():
        return _source(text, 1.0, encoding, skip_bad)
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not (head and 0 < weight <= LARGEST_WEIGHT):
        raise NotFound(f"{text} does not exist, and {tail!r} is not a weight.", _FORM)
    return _source(head, weight, encoding, skip_bad)


class Listing(NamedTuple):
    """The files of a source, and the files in its folder that are not read.

    Attributes:
        files: the files to read.
        for_evaluation: folders and files that are left out because they are for evaluation.
        passed_over: how many files contain no conversations, and why; "" if there are none.
    """

    files: tuple[Path, ...] = ()
    for_evaluation: tuple[Path, ...] = ()
    passed_over: str = ""


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
    shown = from_here(path)
    if path.is_file():
        if kind(path) in TEXT:
            raise DataError(
                f"{shown} holds text, not conversations.",
                f"To train on plain text: {command('data fetch', from_=shown)}, then "
                f"{command('train')} with its name. {_FORM}",
            )
        if kind(path) not in ROWS:
            raise DataError(f"{shown} is not one of {', '.join(ROWS)}.", _FORM)
        return Listing((path,))
    if not path.exists():
        raise NotFound(f"{shown} does not exist.", _FORM)
    everything = found_in(path, ROWS)
    found = [file for file in everything.files if file.name != HUB_MANIFEST]
    if not found:
        others = f" (files ignored: {everything})" if everything.passed_over else ""
        raise DataError(f"There is no {', '.join(ROWS)} in {shown}{others}.", _FORM)
    splits = {file: split for file in found if (split := _split_for_evaluation(file, path))}
    if len(splits) == len(found):
        raise DataError(
            f"Everything in {shown} is meant for evaluation, such as {splits[found[0]]}.",
            "To train on it anyway, name the file itself.",
        )
    files = tuple(file for file in found if file not in splits)
    return Listing(files, tuple(dict.fromkeys(splits.values())), str(everything))


def _split_for_evaluation(file: Path, root: Path) -> Path | None:
    """Return the outermost folder of a file within ``root``, or the file, that is such a split."""
    inside = file.relative_to(root)
    for depth, name in enumerate((*inside.parts[:-1], stem(file)), start=1):
        if _FOR_EVALUATION.fullmatch(name):
            return root.joinpath(*inside.parts[:depth])
    return None


def _source(name: str, weight: float, encoding: str, skip_bad: bool) -> Source:
    if not name:
        raise DataError("One of the conversation sources has an empty name.", _FORM)
    task = TaskChoice.parse(name)
    path = None if is_named_source(name) else expanded(name)
    return Source(path, weight, encoding, skip_bad, task)
