"""What a run may be told of memory. Pure: no arrays, no files, quick to import."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mlxchat.train.size import spelled, to_bytes

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
        return size if size is None or least else spelled(size)

    @property
    def wired_bytes(self) -> int | None:
        """The wired limit, None where it is left alone."""
        return to_bytes(self.wired_limit) if self.wired_limit else None
