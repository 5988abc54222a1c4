"""What is to be said of files that other programs wrote and that cannot be used."""

from pathlib import Path

from mlxchat.errors import MlxchatError

LONGEST = 200  # characters of a reason, which may quote the file


def damaged(path: Path, reason: str) -> MlxchatError:
    """The file is not what its writer meant it to be."""
    return MlxchatError(
        f"{path} is damaged ({_line(reason)}).", "Copy it again from where it was made."
    )


def refused(path: Path, reason: str) -> MlxchatError:
    """The file asks for more than data."""
    return MlxchatError(
        f"{path} is refused: {_line(reason)}.",
        "Nothing in it was run. Do not load it with pickle or torch unless you trust its maker; "
        "save it again as tensors, numbers, text, lists and dictionaries alone.",
    )


def unreadable(path: Path, error: OSError) -> MlxchatError:
    """The file is not there, or the system does not let it be read."""
    return MlxchatError(
        f"{path} cannot be read: {error.strerror or error}.",
        "See whether it is there and may be read.",
    )


def _line(reason: str) -> str:
    """One line that can be shown: no escape sequence of a file's reaches a terminal."""
    words = " ".join(reason[: 2 * LONGEST].split())[:LONGEST]
    return "".join(letter if letter.isprintable() else "?" for letter in words)
