"""The state that training resumes from: the files of a checkpoint beside those of its model.

    optimizer.safetensors   the optimizer's state
    loader.safetensors      the place in the data, and what is packed already
    trainer.json            `TrainerState`: settings, plan, step, meter, files of the dataset

Settings are typed: those of a stage are its own model (`mlxchat.config`), which the caller names
by stage. So this module knows no stage.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, SerializeAsAny, TypeAdapter, ValidationError

from mlxchat import __version__
from mlxchat.checkpoint import layout
from mlxchat.checkpoint.files import (
    CHECKSUMS,
    READABLE_FORMATS,
    TRAINER,
    TRAINER_FORMAT,
    damaged,
    in_words,
    missing_file,
    one_line,
)
from mlxchat.config.run import RunConfig
from mlxchat.data.loader import LoaderState
from mlxchat.errors import CheckpointError, ConfigError, command
from mlxchat.json_text import as_type
from mlxchat.plan.plan import Plan
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Count
from mlxchat.telemetry.meter import MeterState

OPTIMIZER = "optimizer.safetensors"
LOADER = "loader.safetensors"

Settings = TypeVar("Settings", bound=RunConfig)


class TrainerState(BaseModel, Generic[Settings]):
    """The contents of trainer.json: everything needed to resume that is not an array.

    ``Settings`` is the settings model of the run's stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = TRAINER_FORMAT
    mlxchat: str = __version__
    mlx: str = version("mlx")
    step: Count
    stage: str
    settings: SerializeAsAny[Settings]
    plan: Plan
    meter: MeterState
    data: list[str]  # names of the dataset's files
    revision: str | None  # the hub's commit that they are from; None if not from the hub
    fingerprints: dict[str, str] = {}  # of those files by name, or of their first and last bytes

    @property
    def finished(self) -> bool:
        """Whether the run has made all steps of its plan."""
        return self.step == self.plan.num_iterations


def write_state(
    folder: Path,
    state: TrainerState[Settings],
    optimizer: Mapping[str, mx.array],
    loader: LoaderState,
) -> None:
    """Write the three files into a step's directory."""
    (folder / TRAINER).write_text(state.model_dump_json(indent=2), "utf-8")
    mx.save_safetensors(str(folder / OPTIMIZER), dict(optimizer))
    arrays = {name: mx.array(values) for name, values in loader.to_arrays().items()}
    mx.save_safetensors(str(folder / LOADER), arrays)


def read_state(folder: Path, settings: Mapping[str, type[Settings]]) -> TrainerState[Settings]:
    """Read the trainer's state of a checkpoint.

    Args:
        folder: the step's directory.
        settings: the settings model of each stage that is expected, by the stage's name.

    Raises:
        CheckpointError: the model is quantized or imported; the step was saved by another version
            of mlxchat or in another stage; or a file is missing or damaged.
    """
    if layout.is_quantized(folder):
        raise CheckpointError(
            f"The model in {folder} is quantized, so its training cannot be resumed.",
            "Resume the run it was made from, or use another name with `model_tag`.",
        )
    if layout.read_origin(folder) is not None:
        raise CheckpointError(
            f"The model in {folder} was imported, so it has no training to resume.",
            f"Start from its weights: {command('train', init_from=folder.parent.name)}, or "
            f"{command('sft', source=folder.parent.name)}",
        )
    fields = layout.read_checked_json(folder / TRAINER)
    if fields.get("format") not in READABLE_FORMATS:
        found = fields.get("format")
        raise _of_another_version(folder, f"format {found!a:.99}, not {TRAINER_FORMAT}")
    if not (folder / CHECKSUMS).exists():
        raise missing_file(folder / CHECKSUMS)
    kind = settings.get(str(fields.get("stage")))
    if kind is None:
        raise _of_another_version(folder, f"its stage is {fields.get('stage')!a:.99}")
    try:
        stored = fields.get("settings")
        if isinstance(stored, dict):
            fields = {**fields, "settings": kind.upgraded(stored)}
        return as_type(fields, TypeAdapter(TrainerState[kind]))  # type: ignore[valid-type]
    except ValidationError as error:
        raise _of_another_version(folder, in_words(error)) from error
    except ConfigError as error:  # settings that do not go together
        raise _of_another_version(folder, error.problem) from error


def read_loader(folder: Path) -> LoaderState:
    """Read the loader's state of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    arrays = layout.read_arrays(folder / LOADER)
    try:
        return LoaderState.from_arrays({name: np.array(a) for name, a in arrays.items()})
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(folder / LOADER, error) from error


def read_optimizer(folder: Path, expected: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Read the optimizer's state of a checkpoint.

    Args:
        folder: the step's directory.
        expected: a state of the same optimizer, for the names and shapes.

    Raises:
        CheckpointError: the file is missing, damaged or another model's.
    """
    path = folder / OPTIMIZER
    state = layout.read_arrays(path)
    layout.check_arrays(path, state, expected)
    return state


def _of_another_version(folder: Path, difference: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / TRAINER} was saved by another version of mlxchat ({one_line(difference)}).",
        "You can still chat with it. To train, use another name with `model_tag`, or start from "
        "scratch with `fresh`, which renames this run.",
    )
