"""What every run may be told, whatever is trained. Pure: no arrays, no files, quick to import.

What a run may be told of memory. Pure: no arrays, no files, quick to import.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mlxchat.config.units import spell_size, to_bytes

LEAST = "least"  # a memory limit


class MemoryConfig(BaseModel):
    """How much memory, and how it is kept to. Nothing of what is learnt depends on it, but for
    rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="Memory")

    memory_limit: str | None = Field(
        None,
        description="Memory to train in, such as 12GB, 800MB or 7.5GiB: rows computed at once, "
        "checkpointing and chunks of the loss are chosen to fit, the fastest that do. least: as "
        "little as this model can be trained in, or 512 MiB. Default: on a Mac what the system "
        "recommends for its GPU, two thirds of memory or more; elsewhere 90% of what is free.",
    )
    grad_checkpoint: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether a layer's activations are computed again in the backward pass instead "
        "of kept: less memory, a third more computing. auto: if it does not fit otherwise.",
    )
    device_batch_size: int | None = Field(
        None, ge=1, description="Rows computed at once. Default: the fastest number that fits."
    )
    wired_limit: str | None = Field(
        None,
        description="Memory of MLX that macOS must not swap out, such as 8GB; Macs only. Default: "
        "none.",
    )

    @field_validator("memory_limit", "wired_limit")
    @classmethod
    def _one_spelling_of_a_size(cls, size: str | None, info: ValidationInfo) -> str | None:
        least = info.field_name == "memory_limit" and size == LEAST
        return size if size is None or least else spell_size(size)

    @property
    def wired_bytes(self) -> int | None:
        """The wired limit, None where it is left alone."""
        return to_bytes(self.wired_limit) if self.wired_limit else None


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a run or a dataset: a folder's name
LARGEST_COUNT = 10**15  # of steps, or of tokens in one

# Settings that may change from one process of a run to the next: what is learnt stays the same.
INDEPENDENT = frozenset(
    {
        "memory_limit",
        "grad_checkpoint",
        "device_batch_size",
        "wired_limit",
        "eval_every",
        "eval_tokens",
        "sample_every",
        "save_every",
        "keep",
        "model_tag",
    }
)


def model_name(source: str) -> str:
    """What to call the model that a run's name, or the path of a model's directory, stands for."""
    path = Path(source)
    return path.parent.name if path.name.startswith("step_") else path.name


class RunConfig(MemoryConfig):
    """How a run is looked at, saved and called."""

    model_config = ConfigDict(title="Evaluating and saving")

    independent: ClassVar[frozenset[str]] = INDEPENDENT

    eval_every: int = Field(250, ge=0, description="Steps between evaluations; 0 for none.")
    eval_tokens: int | None = Field(
        None,
        ge=1,
        description="Validation tokens. Default: 20 times the total batch (5 times where time is "
        "budgeted), or what there is.",
    )
    sample_every: int = Field(2000, ge=0, description="Steps between samples; 0 for none.")
    save_every: int = Field(
        50, ge=0, description="Steps between checkpoints; 0 for the last one only."
    )
    keep: int = Field(3, ge=1, description="Checkpoints to keep.")
    model_tag: str | None = Field(
        None,
        pattern=NAME,
        description="Name of the run. Default: what it is, such as d12, auto-2h or d12-sft.",
    )

    @property
    @abstractmethod
    def tag(self) -> str:
        """The run's name."""

    @property
    def evaluation_steps(self) -> int:
        """Steps whose number of tokens an evaluation takes by default.

        Classic nanochat's; modern's is the tokens of 80 steps of 2^19.
        """
        return 20

    @classmethod
    def shown(cls, settings: dict[str, Any], name: str) -> str:
        """A setting, or what stands for it where it is not given."""
        return "not given" if settings[name] is None else str(settings[name])

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """Settings by which this run would not be the stored one, ``name (then -> now)`` each.

        Those in ``independent`` may differ: they do not change what is learnt. A default that is
        spelled out is no difference.
        """
        then = type(self)().model_dump(mode="json") | stored
        now = self.model_dump(mode="json")
        return [
            f"`{name}` ({self.shown(then, name)} -> {self.shown(now, name)})"
            for name in now
            if name not in self.independent
            and then[name] != now[name]
            and self.shown(then, name) != self.shown(now, name)
        ]
