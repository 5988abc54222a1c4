"""Models for other programs: directories that appear whole or not at all.

`programs.PROGRAMS` lists the programs. Each has a module here that is an `Exporter`.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from mlxchat import disk
from mlxchat.checkpoint import copies, layout
from mlxchat.checkpoint.bases import is_adapter
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.device_failures import explained
from mlxchat.disk import require_utf8
from mlxchat.errors import CheckpointError, DiskError, reason_of
from mlxchat.interop.exporters.card import CARD_FILE, Usage, card
from mlxchat.interop.exporters.weights import (
    LARGEST_FILE,
    ReportBytes,
    WeightWriter,
    cast_matrices,
)
from mlxchat.interop.programs import PROGRAMS, Program
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx

_ELSEWHERE = "name another folder with `out`"

__all__ = ["Exported", "Exporter", "Program", "require_possible", "require_readable", "write"]


class Exporter(Protocol):
    """The functions of a module that writes models for one program."""

    def require_known(self, config: GPTConfig) -> None:
        """Check that the program can run a model of this shape.

        Raises:
            CheckpointError: it cannot; the remedy names programs that can.
        """

    def write(
        self, folder: Path, saved: SavedModel, history: History, weights: WeightWriter
    ) -> None:
        """Write the model's files into an existing, empty folder.

        Raises:
            OSError, RuntimeError: a file cannot be written.
        """

    def usage(self, saved: SavedModel, history: History) -> Usage:
        """Return the commands that run the model in the program."""


@dataclass(frozen=True)
class Exported:
    """A model that was written for another program, and the commands that run it there."""

    folder: Path
    bytes: int
    usage: Usage


def require_possible(program: Program, source: Path, folder: Path) -> None:
    """Check that a saved model can be exported, before anything large is read.

    Args:
        program: the program that is to run the model.
        source: the directory of the model.
        folder: the new directory.

    Raises:
        CheckpointError: the program cannot run such a model, or the folder exists already.
    """
    require_readable(
        program,
        layout.read_config(source),
        quantized=layout.is_quantized(source),
        adapted=is_adapter(source),
        folder=folder,
    )


def require_readable(
    program: Program, config: GPTConfig, *, quantized: bool, adapted: bool, folder: Path
) -> None:
    """Check that a program can run a model of this shape, and that the folder is free.

    Args:
        program: the program.
        config: the shape of the model.
        quantized: whether it is quantized, as a whole.
        adapted: whether there is an adapter on it.
        folder: the new directory.

    Raises:
        CheckpointError: the program cannot, or the folder exists already.
    """
    if PROGRAMS[program].takes_adapters and not adapted:
        raise CheckpointError(
            f"There is no adapter on the model, and {program} is for adapters.",
            "Export the whole model `to=transformers` or `to=mlx-lm`.",
        )
    if quantized and not PROGRAMS[program].reads_quantized:
        raise CheckpointError(
            f"The model is quantized, which {program} cannot read.",
            "Export the model that it was made from, or this one `to=mlx-lm`.",
        )
    exporter(program).require_known(config)
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} already exists.", "Name a new folder with `out`.")


def exporter(program: Program) -> Exporter:
    """Return the module that writes models for a program."""
    return cast(Exporter, import_module(f"{__name__}.{PROGRAMS[program].module}"))


def write(
    program: Program,
    folder: Path,
    saved: SavedModel,
    history: History,
    dtype: mx.Dtype,
    report: ReportBytes = lambda done, total: None,
    limit: int = LARGEST_FILE,
) -> Exported:
    """Write a model in a program's format, with its tokenizer and a model card.

    Args:
        program: a program that can run the model (`require_possible`).
        folder: the new directory; it must not exist.
        saved: the model. Afterwards its matrices are of ``dtype``, and an adapter is a part of
            them unless the program takes adapters.
        history: the origin of the model, for its card.
        dtype: the type of the matrices, or of their scales if they are quantized.
        report: called with the bytes written so far, and with the total.
        limit: the most bytes of a safetensors file; a larger tensor gets a file of its own.

    Raises:
        ConfigError: the directory's name is not in UTF-8.
        LockedError: another process is writing that folder.
        DiskError: the disk is full or cannot be written, or the folder was filled meanwhile. What
            was written is removed.
    """
    require_utf8(folder)
    module = exporter(program)
    if saved.base is not None and not PROGRAMS[program].takes_adapters:
        saved = copies.fused(saved)
    with disk.new_folder(folder, _ELSEWHERE) as unfinished:
        cast_matrices(saved.model, dtype)
        usage = module.usage(saved, history)
        text = card(PROGRAMS[program], saved, history, usage)
        try:
            with explained():
                module.write(unfinished, saved, history, WeightWriter(limit, report))
            (unfinished / CARD_FILE).write_text(text, "utf-8")
            files = (path for path in unfinished.rglob("*") if path.is_file())
            size = sum(path.stat().st_size for path in files)
        except (OSError, RuntimeError) as error:  # MLX raises the latter
            raise DiskError(
                f"{folder} could not be written: {reason_of(error)}.",
                "Check that there is room on the disk and that you may write there, or "
                f"{_ELSEWHERE}.",
            ) from error
    return Exported(folder, size, usage)
