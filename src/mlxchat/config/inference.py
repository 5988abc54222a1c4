"""How the next token is chosen, as numbers; kept apart from arrays so that ``--help`` is quick.

What the evaluation of a chat model is told. Pure: no arrays, quick to import.

What a measurement is told. Pure: no arrays, quick to import.
"""

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlxchat.config.pretrain import LARGEST_CONTEXT, LARGEST_DEPTH
from mlxchat.data.chats.sources import VALIDATION_SHARE
from mlxchat.errors import ConfigError
from mlxchat.model.config import HEAD_DIM, Architecture


class Sampling(BaseModel):
    """The choice of the next token. The filters apply in the order of the fields, penalty first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="Sampling")

    temperature: float = Field(
        0.6, ge=0, description="Divides the logits: 0 takes the likeliest token, 1 samples as is."
    )
    top_k: int | None = Field(
        50, ge=1, description="Keep this many of the likeliest tokens; a large number keeps all."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Keep the fewest tokens whose probabilities reach this sum."
    )
    min_p: float = Field(
        0.0, ge=0, lt=1, description="Keep tokens with this share of the likeliest's probability."
    )
    repetition_penalty: float = Field(
        1.0, ge=1, description="Makes tokens that occurred before less likely; 1 leaves them alone."
    )


TaskName = Literal["arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval", "spelling"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
ALL = "all"


class ChatEvalConfig(BaseModel):
    """On what a chat model is evaluated, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: str | None = Field(
        None,
        description=f"Any of {', '.join(TASK_NAMES)}, separated by commas; or all. Default: those "
        "whose data is there.",
    )
    task_data: Path | None = Field(
        None,
        description="Folder of the tasks' files, laid out as the hub lays them out. Default: "
        "task_data in $MLXCHAT_HOME.",
    )
    data: list[str] | None = Field(
        None,
        description="Conversations as sft takes them; once more for each source. What sft holds "
        "out of them is foreseen, and the last replies are given. For builtin also 200 questions "
        "that none of its conversations asks.",
        json_schema_extra={"metavar": "PATH"},
    )
    validation_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of `data` that sft held out. Default: as the model was fine-tuned, or "
        f"{VALIDATION_SHARE:g}.",
    )
    max_problems: int | None = Field(
        None,
        ge=1,
        description="Of each task, and of the conversations, at most so many: the same for every "
        "model.",
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Answers written at a time.")
    max_new_tokens: int = Field(512, ge=1, description="Tokens in a written answer at most.")
    allow_code_execution: bool = Field(
        False, description="Run the programs that the model writes for humaneval, on this machine."
    )

    @field_validator("task_data")
    @classmethod
    def _wherever_it_is(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: str | None) -> str | None:
        if tasks is not None and not _split(tasks):
            raise ConfigError("`tasks` names no task.", f"Give {', '.join(TASK_NAMES)} or {ALL}.")
        for name in _split(tasks):
            if name not in (*TASK_NAMES, ALL):
                raise ConfigError(
                    f"There is no task {name!r}.", f"Give {', '.join(TASK_NAMES)} or {ALL}."
                )
        return tasks

    @property
    def named(self) -> tuple[TaskName, ...] | None:
        """The tasks that were asked for, each once; None where none was named."""
        if self.tasks is None:
            return None
        names = _split(self.tasks)
        return tuple(name for name in TASK_NAMES if ALL in names or name in names)


def _split(tasks: str | None) -> list[str]:
    return [name.strip().lower() for name in (tasks or "").split(",") if name.strip()]


class BenchConfig(BaseModel):
    """Which model is measured, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arch: Architecture = Field(
        "classic", description="classic: nanochat of October 2025; modern: of July 2026."
    )
    depth: int = Field(4, ge=1, le=LARGEST_DEPTH, description="Layers; width is 64 times as much.")
    head_dim: int = Field(
        HEAD_DIM,
        ge=2,
        description="Width of a head; of a classic one at most, the width is shared out.",
    )
    max_seq_len: int = Field(
        512, ge=16, le=LARGEST_CONTEXT, description="Context length in tokens."
    )
    device_batch_size: int = Field(
        8, ge=1, le=10**9, description="Rows of training computed at once."
    )
    vocab_size: int = Field(4096, ge=265, le=1_000_000, description="Tokens in the vocabulary.")
    steps: int = Field(20, ge=3, description="Training steps to time; the median counts.")
    seconds: float = Field(
        30, gt=0, description="Seconds to train for at most, once three steps are timed."
    )
