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
from mlxchat.errors import CheckpointError, ConfigError, DiskError, reason_of
from mlxchat.evaluate.temperature import NearestTemperatures, nearest_temperatures
from mlxchat.interop.exporters.card import CARD_FILE, Usage, card
from mlxchat.interop.exporters.job import ExportJob
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

__all__ = [
    "Exported",
    "Exporter",
    "Program",
    "precision",
    "require_possible",
    "require_readable",
    "write",
]


class Exporter(Protocol):
    """The functions of a module that writes models for one program."""

    def require_known(self, config: GPTConfig, quantize: str | None) -> None:
        """Check that the program can run a model of this shape, its matrices of this type.

        Raises:
            CheckpointError: it cannot; the remedy names programs or types that can.
        """

    def write(self, folder: Path, job: ExportJob) -> None:
        """Write the model's files into an existing, empty folder.

        Raises:
            OSError, RuntimeError: a file cannot be written.
        """

    def usage(self, job: ExportJob) -> Usage:
        """Return the commands that run the model in the program."""


@dataclass(frozen=True)
class Exported:
    """A model that was written for another program, and the commands that run it there."""

    folder: Path
    bytes: int
    usage: Usage


def require_possible(
    program: Program, source: Path, folder: Path, quantize: str | None = None
) -> None:
    """Check that a saved model can be exported, before anything large is read.

    Args:
        program: the program that is to run the model.
        source: the directory of the model.
        folder: the new directory.
        quantize: the type of the matrices, one of the program's ``quantizations``.

    Raises:
        ConfigError: the program has no such type.
        CheckpointError: the program cannot run such a model, or the folder exists already.
        BackendError: the library that writes its files is not installed.
    """
    require_readable(
        program,
        layout.read_config(source),
        quantized=layout.is_quantized(source),
        adapted=is_adapter(source),
        folder=folder,
        quantize=quantize,
    )


def require_readable(
    program: Program,
    config: GPTConfig,
    *,
    quantized: bool,
    adapted: bool,
    folder: Path,
    quantize: str | None = None,
) -> None:
    """Check that a program can run a model of this shape, and that the folder is free.

    Args:
        program: the program.
        config: the shape of the model.
        quantized: whether it is quantized, as a whole.
        adapted: whether there is an adapter on it.
        folder: the new directory.

    Raises:
        ConfigError, CheckpointError, BackendError: as for `require_possible`.
    """
    row = PROGRAMS[program]
    if row.takes_adapters and not adapted:
        raise CheckpointError(
            f"The model has no adapter, and {program} only takes adapters.",
            "Export the whole model with `to=transformers` or `to=mlx-lm`.",
        )
    if quantize is not None and quantize not in row.quantizations:
        raise ConfigError(
            f"{program} does not support `quantize={quantize}`.",
            f"Use one of {', '.join(row.quantizations)}."
            if row.quantizations
            else "Leave it out, or export with `to=mlx-lm` or `to=gguf`.",
        )
    if quantized and row.quantized == "refused":
        raise CheckpointError(
            f"The model is quantized, which {program} cannot read.",
            "Export the model it was made from, or this one with `to=mlx-lm` or `to=gguf`.",
        )
    exporter(program).require_known(config, quantize)
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} already exists.", "Name a new folder with `out`.")


def precision(program: Program, dtype: str | None, quantized: bool) -> mx.Dtype:
    """Return the type in which to write a model's matrices, or their scales if it is quantized.

    Args:
        program: the program that is to run the model.
        dtype: the name of the type that the user has chosen, if any.
        quantized: whether the model is quantized, or will be.

    Raises:
        ConfigError: the program has types of its own, or gets an adapter, which is in float32.
    """
    if PROGRAMS[program].takes_adapters:
        if dtype is not None:
            raise ConfigError(
                "Adapter matrices are always written in float32.", "Leave out `dtype`."
            )
        return mx.float32
    if PROGRAMS[program].quantized == "dense":
        if dtype is not None:
            raise ConfigError(
                f"The matrices of a {program} file have data types of their own.",
                "Choose one with `quantize`, such as `quantize=f16`, instead of `dtype`.",
            )
        return mx.float32
    chosen: mx.Dtype = getattr(mx, dtype or ("bfloat16" if quantized else "float32"))
    return chosen


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
    quantize: str | None = None,
    temperatures: NearestTemperatures | None = None,
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
        quantize: the type of the matrices where the program has types of its own.
        temperatures: the nearest to ours where the program has no soft cap, for its settings; by
            default they are measured on the built-in corpus.

    Raises:
        ConfigError: the directory's name is not in UTF-8.
        LockedError: another process is writing that folder.
        DiskError: the disk is full or cannot be written, or the folder was filled meanwhile. What
            was written is removed.
    """
    require_utf8(folder)
    module, row = exporter(program), PROGRAMS[program]
    if saved.base is not None and not row.takes_adapters:
        saved = copies.fused(saved)
    if not row.caps_logits:
        temperatures = temperatures or nearest_temperatures(saved)
        history = history.unmeasured()  # what it holds was measured with the cap
    job = ExportJob(saved, history, WeightWriter(limit, report), quantize, temperatures)
    with disk.new_folder(folder, _ELSEWHERE) as unfinished:
        cast_matrices(saved.model, dtype)
        usage = module.usage(job)
        text = card(row, saved, history, usage)
        try:
            with explained():
                module.write(unfinished, job)
            (unfinished / CARD_FILE).write_text(text, "utf-8")
            files = (path for path in unfinished.rglob("*") if path.is_file())
            size = sum(path.stat().st_size for path in files)
        except (OSError, RuntimeError) as error:  # MLX raises the latter
            raise DiskError(
                f"{folder} could not be written: {reason_of(error)}.",
                f"Check the disk space and your permissions there, or {_ELSEWHERE}.",
            ) from error
    return Exported(folder, size, usage)
