"""Where an imported model is from: a file in its directory, ``origin.json``."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mlxchat.ckpt import checksums
from mlxchat.ckpt.foreign import damaged

FILE = "origin.json"

Note = TypeVar("Note", bound=BaseModel)


class Origin(BaseModel):
    """What was imported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str  # that wrote it
    path: str
    step: int
    bits_per_byte: float | None = None  # of validation, as that program measured it

    def write(self, folder: Path) -> None:
        """Into the directory of the imported model."""
        (folder / FILE).write_text(self.model_dump_json(indent=2), "utf-8")


def read(folder: Path) -> Origin | None:
    """That of the model in a directory; None where it wasn't imported.

    Raises:
        MlxchatError: the file is damaged.
    """
    return read_note(folder / FILE, Origin)


def read_note(path: Path, kind: type[Note]) -> Note | None:
    """What was noted in a file beside a model; None where there is no such file.

    Raises:
        MlxchatError: it is damaged.
    """
    if not path.exists():
        return None
    checksums.check(path)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise damaged(path, "it is not what mlxchat wrote") from error
