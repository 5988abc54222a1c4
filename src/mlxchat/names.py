"""File names that are spelled differently, but name the same file on some disks.

A Mac's disk keeps the spelling of a name, but takes two that differ in case only for one, and also
the two Unicode forms of a letter with a mark: ü is one character, or a u and a mark. What is typed,
listed by a disk, or saved with a run can be of either form; a disk of Linux tells them apart.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path


def composed(name: str) -> str:
    """Return a name in the one Unicode form in which names are compared (NFC)."""
    return unicodedata.normalize("NFC", name)


def without_marks(name: str) -> str:
    """Return a name whose letters have no marks, whatever its form.

    >>> without_marks("Füchse")
    'Fuchse'
    """
    letters = unicodedata.normalize("NFD", name)
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def as_listed(names: Iterable[str], listed: Iterable[str]) -> list[str]:
    """Return names in the Unicode form in which a folder lists them; those it lacks, unchanged."""
    found = {composed(name): name for name in listed}
    return [found.get(composed(name), name) for name in names]


def namesake(path: Path) -> Path | None:
    """Return the file or folder beside ``path`` whose name differs from its own in case only.

    None if there is none, or if ``path`` itself is listed in its folder.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        listed = sorted(entry.name for entry in path.parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if path.name in listed:
        return None
    others = (name for name in listed if name.lower() == path.name.lower())
    return next((path.with_name(name) for name in others), None)
