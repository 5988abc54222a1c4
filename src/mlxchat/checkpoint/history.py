"""How a model came to be: the runs it learnt in, oldest first, and the import before them.

What a saved step's own files tell is its own run, or its import. What was before that is kept in
``history.json``: in the steps of a run that began with another model, and in quantized copies.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mlxchat.checkpoint import layout, store
from mlxchat.checkpoint import layout as origin
from mlxchat.checkpoint.layout import Origin
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.shards import DATASETS
from mlxchat.errors import MlxchatError

FILE = "history.json"
_BUILTIN = "the built-in corpus of mlxchat"
_WEIGHT = re.compile(r":[\d.e+-]+$")  # of a source of conversations


class Training(BaseModel):
    """A run that a model learnt in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    stage: str  # "pretraining" or "fine-tuning"
    step: int
    data: tuple[str, ...]  # in words, with licences
    tokens: int | None  # that were read
    began_with: str | None  # the model; None for random weights


class History(BaseModel):
    """How a model came to be, as far as that is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str  # of its run
    step: int
    trainings: tuple[Training, ...] = ()
    origin: Origin | None = None  # where it, or what it began with, was imported from
    bits_per_byte: float | None = None  # of validation text

    @property
    def unknown(self) -> str | None:
        """The model of which is not known what it learnt from; None where all is known."""
        if self.origin is not None:
            return f"the model that was imported from {self.origin.program}"
        return self.trainings[0].began_with if self.trainings else self.tag

    def write(self, folder: Path) -> None:
        """Into the directory of a model that comes from this one.

        How good this one was is left out: the other is another.
        """
        kept = self.model_copy(update={"bits_per_byte": None})
        (folder / FILE).write_text(kept.model_dump_json(indent=2), "utf-8")


def named(folder: Path) -> tuple[str, int]:
    """The name of a model and its step: a saved step's run, or the directory's own and 0.

    Raises:
        OSError: the folder that it is in cannot be read.
    """
    folder = folder.resolve()
    steps = {store.directory(folder.parent, step): step for step in store.steps(folder.parent)}
    return (folder.parent.name, steps[folder]) if folder in steps else (folder.name, 0)


def read(folder: Path) -> History:
    """That of the model in a directory.

    Raises:
        MlxchatError: what its import or the model before it left is damaged. What another version
            of mlxchat says of training is not looked at.
    """
    tag, step = named(folder)
    imported = origin.read_origin(folder)
    if imported is not None:
        return History(tag=tag, step=step, origin=imported, bits_per_byte=imported.bits_per_byte)
    before = past(folder) or History(tag=tag, step=step)
    known = before.model_copy(update={"tag": tag, "step": step})
    try:
        trainer = layout.read_trainer(folder)
    except MlxchatError:  # there is none, as of a quantized copy, or of another version
        return known
    evaluations = trainer.meter.get("evaluations") or [[0, None]]
    tokens = trainer.plan.get("tokens_per_step")
    source = trainer.settings.get("source") or trainer.settings.get("init_from")
    own = Training(
        run=tag,
        stage=trainer.stage,
        step=trainer.step,
        data=tuple(data_in_words(trainer.settings)),
        tokens=tokens * trainer.step if isinstance(tokens, int) else None,
        began_with=Path(source).name if source else None,
    )
    return known.model_copy(
        update={"trainings": (*before.trainings, own), "bits_per_byte": evaluations[-1][1]}
    )


def past(folder: Path) -> History | None:
    """That of the model which the one in a directory comes from; None where nothing is noted.

    Raises:
        MlxchatError: the note is damaged.
    """
    return origin.read_note(folder / FILE, History)


def data_in_words(settings: dict[str, Any]) -> list[str]:
    """What a run of these settings learns from, with licences where these are known."""
    if "dataset" not in settings:
        return _conversations(settings)
    if settings.get("data_dir"):
        return ["shards of its own"]
    name = str(settings["dataset"])
    if name not in DATASETS:
        return [_BUILTIN if name == BUILTIN else name]
    dataset = DATASETS[name]
    return [f"{name} (https://huggingface.co/datasets/{dataset.repo}; {dataset.licence_note})"]


def _conversations(settings: dict[str, Any]) -> list[str]:
    sources = [_WEIGHT.sub("", text) for text in settings.get("data") or ()]
    told = [
        f"conversations of {_BUILTIN if source == BUILTIN else Path(source).name}"
        for source in sources
    ]
    if settings.get("identity"):
        told.append("made-up conversations about who it is")
    if settings.get("spelling"):
        told.append("made-up conversations that spell")
    return told
