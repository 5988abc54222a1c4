"""Where an imported model is from: a file in its directory, ``origin.json``."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlxchat.ckpt.checksums import damaged

FILE = "origin.json"


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
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Origin.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise damaged(path, "it is not what an import wrote") from error
