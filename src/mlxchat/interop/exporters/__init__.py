"""Models for other programs: directories that appear whole or not at all.

`mlx_lm` for mlx-lm, `transformers` for Hugging Face's, `nanochat` for nanochat itself. Each writes
its files into a folder, the tensors one shard after another.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxchat import disk
from mlxchat.checkpoint import layout
from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.errors import CheckpointError, DiskError
from mlxchat.interop.exporters import card, mlx_lm, nanochat, transformers
from mlxchat.interop.exporters.card import MOST_BYTES, Report, Shards, cast_matrices
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx

Program = Literal["mlx-lm", "transformers", "nanochat"]

WRITERS: dict[Program, Callable[[Path, SavedModel, History, Shards], card.Usage]] = {
    "mlx-lm": mlx_lm.write,
    "transformers": transformers.write,
    "nanochat": nanochat.write,
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    bytes: int
    usage: card.Usage


def require_possible(program: Program, source: Path, folder: Path) -> None:
    """Check what can be before anything large is read.

    Args:
        program: whose the model is to be.
        source: the directory of the model.
        folder: where to.

    Raises:
        MlxchatError: the program cannot run such a model, or something is at the folder's place.
    """
    require_readable(program, layout.read_config(source), layout.is_quantized(source), folder)


def require_readable(program: Program, config: GPTConfig, quantized: bool, folder: Path) -> None:
    """Check that a program can run a model of this shape, and that the folder is free.

    Raises:
        CheckpointError: it cannot, or something is in the folder's place.
    """
    if program != "mlx-lm" and quantized:
        raise CheckpointError(
            f"The model is quantized, which {program} cannot read.",
            "Export the model that it was made of, or this one `to=mlx-lm`.",
        )
    if program == "transformers":
        transformers.require_known(config)
    elif program == "nanochat":
        nanochat.require_known(config)
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} is there already.", "Name a new folder with `out`.")


def write(
    program: Program,
    folder: Path,
    saved: SavedModel,
    history: History,
    dtype: mx.Dtype,
    report: Report = lambda done, of: None,
    limit: int = MOST_BYTES,
) -> Exported:
    """Write a model as a program reads it, with its tokenizer and a model card.

    Args:
        program: that is to read it, and can (`require_possible`).
        folder: that does not exist.
        saved: the model; its matrices are of ``dtype`` afterwards.
        history: how it came to be.
        dtype: of the matrices that are not quantized, and of the scales of those that are.
        report: is told the bytes written, and of all.
        limit: bytes of a file of safetensors, unless one tensor has more.

    Raises:
        MlxchatError: the disk is full or cannot be written; there is nothing in the folder then.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shards = Shards(limit, report)
    cast_matrices(saved.model, dtype)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        usage = WRITERS[program](unfinished, saved, history, shards)
        (unfinished / card.FILE).write_text(card.card(program, saved, history, usage), "utf-8")
        files = [path for path in unfinished.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for path in [*files, unfinished]:
            disk.sync(path)
        unfinished.replace(folder)
        disk.sync(folder.parent)
    except (OSError, RuntimeError) as error:  # MLX raises the latter
        raise DiskError(
            f"{folder} could not be written: {getattr(error, 'strerror', None) or error}.",
            "Is there room on the disk, and may you write there? `out` names another place.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(folder, size, usage)
