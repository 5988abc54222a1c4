"""What a model's directory says of how the model came to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.ckpt import layout, origin
from mlxchat.ckpt.origin import Origin
from mlxchat.data.shards import DATASETS
from mlxchat.errors import MlxchatError


@dataclass(frozen=True)
class History:
    """How a model came to be, as far as that is known."""

    tag: str  # of its run
    step: int
    stage: str | None = None  # "pretraining", or what else its run was
    data: tuple[str, ...] = ()  # that it was trained on, in words
    tokens: int | None = None  # that it was trained on
    bits_per_byte: float | None = None  # of validation text
    origin: Origin | None = None  # where it was imported from


def read(folder: Path, tag: str, step: int) -> History:
    """That of the model in a directory.

    Args:
        tag, step: what it is called.

    Raises:
        MlxchatError: the note of its import is damaged. What another version of mlxchat says of
            training is not looked at.
    """
    imported = origin.read(folder)
    if imported is not None:
        return History(tag, step, bits_per_byte=imported.bits_per_byte, origin=imported)
    try:
        trainer = layout.read_trainer(folder)
    except MlxchatError:  # there is none, as of a quantized copy, or of another version
        return History(tag, step)
    evaluations = trainer.meter.get("evaluations") or [[0, None]]
    tokens = trainer.plan.get("tokens_per_step")
    return History(
        tag,
        step,
        trainer.stage,
        tuple(_data(trainer.settings)),
        tokens * trainer.step if isinstance(tokens, int) else None,
        evaluations[-1][1],
    )


def _data(settings: dict[str, Any]) -> list[str]:
    """Datasets in words, with their licences where these are known."""
    if "dataset" not in settings:  # but conversations
        return [f"conversations of {Path(each).name}" for each in settings.get("data") or ()]
    if settings.get("data_dir"):
        return ["shards of its own"]
    name = str(settings.get("dataset"))
    if name not in DATASETS:
        return [name]
    dataset = DATASETS[name]
    return [f"{name} (https://huggingface.co/datasets/{dataset.repo}; {dataset.licence_note})"]
