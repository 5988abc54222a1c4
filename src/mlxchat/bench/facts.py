"""What is measured, as values."""

from pydantic import BaseModel, ConfigDict

from mlxchat.config.inference import BenchConfig


class Facts(BaseModel):
    """Base of what is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(Facts):
    """Where it was measured."""

    device: str
    backend: str
    compute_dtype: str
    memory: int  # bytes that the backend can address
    peak_flops: float | None  # FLOP/s of the chip; None where unknown
    matmul_flops: float  # FLOP/s of a matrix product, measured
    mlxchat: str
    mlx: str
    python: str
    system: str


class Training(Facts):
    """Whole steps: forward, backward, clipping, update."""

    startup_seconds: float  # from the command's beginning until the first step is begun
    first_step_seconds: float  # compilation included
    step_seconds: list[float]  # of each counted step
    tokens_per_step: int
    tokens_per_second: float  # by the median step
    flops_per_second: float  # by the model's arithmetic
    matmul_share: float  # of the measured matrix product
    mfu: float | None  # of the chip's peak; None where that is unknown
    peak_memory: int  # bytes, of MLX's allocator


class Generation(Facts):
    """One sequence, by the cache."""

    prefill_tokens: int  # in the prompt that is read
    prefill_tokens_per_second: float
    prompt_tokens: int  # before those that are decoded
    decoded_tokens: int  # in a round at most
    tokens_per_second: float  # decoded greedily


class Bench(Facts):
    """All that is measured."""

    config: BenchConfig
    parameters: int
    flops_per_token: int  # forward and backward
    environment: Environment
    training: Training
    generation: Generation
