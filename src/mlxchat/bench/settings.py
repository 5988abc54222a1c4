"""What a measurement is told. Pure: no arrays, quick to import."""

from pydantic import BaseModel, ConfigDict, Field

from mlxchat.model.config import HEAD_DIM, Architecture
from mlxchat.train.settings import LARGEST_CONTEXT, LARGEST_DEPTH


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
