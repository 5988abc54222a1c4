"""The origin of a model: the import it started from and the runs it was trained in, oldest first.

A checkpoint's own files describe its own run, or its import. Everything before that is kept in
``history.json``, which is written into the steps of a run that began with another model and into
quantized copies. `mlxchat.train.stage.history_of` combines the two.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mlxchat.checkpoint import layout, store
from mlxchat.checkpoint.bases import BaseRecord, checksums_of_weights, is_adapter
from mlxchat.checkpoint.files import HISTORY
from mlxchat.checkpoint.layout import Origin
from mlxchat.checkpoint.task_results import TaskResult
from mlxchat.errors import CheckpointError, command
from mlxchat.telemetry.meter import CorePoint


class Training(BaseModel):
    """A run in which a model was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    stage: str  # its name, such as "pretraining"
    step: int
    data: tuple[str, ...]  # in words, with licences
    tokens: int | None  # that the run has read
    began_with: str | None  # the model; None: random weights


class History(BaseModel):
    """The origin of a model, as far as it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str  # name of the model's run
    step: int
    trainings: tuple[Training, ...] = ()
    origin: Origin | None = None  # the import of the model, or of the first one before it
    bits_per_byte: float | None = None  # on validation text
    core: CorePoint | None = None  # of this step or an earlier one of its run
    results: tuple[TaskResult, ...] = Field((), exclude=True)  # of this step; not in the file

    @property
    def unknown(self) -> str | None:
        """The model whose training data are not known; None if everything is known."""
        if self.origin is not None:
            return f"the model that was imported from {self.origin.program}"
        return self.trainings[0].began_with if self.trainings else self.tag

    def with_training(
        self, training: Training, bits_per_byte: float | None, core: CorePoint | None
    ) -> "History":
        """Return this history with one more run at its end, and what that has measured."""
        trainings = (*self.trainings, training)
        changed = {"trainings": trainings, "bits_per_byte": bits_per_byte, "core": core}
        return self.model_copy(update=changed)

    def unmeasured(self) -> "History":
        """Return this history for a model that is made from this one.

        What was measured is left out: it is not the new model's.
        """
        return self.model_copy(update={"bits_per_byte": None, "core": None, "results": ()})

    def write(self, folder: Path) -> None:
        """Write this history into the directory of a model that is made from this one."""
        (folder / HISTORY).write_text(self.unmeasured().model_dump_json(indent=2), "utf-8")


def read_before(folder: Path) -> History:
    """Read how the model in a directory came to be, without the run that saved it.

    Raises:
        CheckpointError: `layout.ORIGIN` or `HISTORY` is damaged.
    """
    tag, step = tag_and_step(folder)
    origin = layout.read_origin(folder)
    if origin is not None:
        return History(tag=tag, step=step, origin=origin, bits_per_byte=origin.bits_per_byte)
    before = read_file(folder) or History(tag=tag, step=step)
    return before.model_copy(update={"tag": tag, "step": step})


def read_file(folder: Path) -> History | None:
    """Read `HISTORY` in a model's directory; None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    return layout.read_record(folder / HISTORY, History)


def record_of_base(folder: Path) -> BaseRecord:
    """Return what an adapter's directory says of the model in a directory, which it is put on.

    Raises:
        CheckpointError: its weights cannot be read, or it is an adapter itself.
    """
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder} contains an adapter, and adapters cannot be stacked.",
            f"Merge it into its base model first: {command('fuse', checkpoint=folder)}",
        )
    tag, step = tag_and_step(folder)
    weights = checksums_of_weights(folder)
    return BaseRecord(run=tag, step=step, folder=str(folder.resolve()), weights=weights)


def tag_and_step(folder: Path) -> tuple[str, int]:
    """Return the name of a model and its step.

    They are the run and the step of a checkpoint; of another directory its own name and 0.

    Raises:
        OSError: the folder that it is in cannot be read.
    """
    folder = folder.resolve()
    steps = {store.directory(folder.parent, step): step for step in store.steps(folder.parent)}
    return (folder.parent.name, steps[folder]) if folder in steps else (folder.name, 0)
