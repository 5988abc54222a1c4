"""Pretraining's settings, and the plan that follows from them. Pure: no arrays, no files."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mlxchat.errors import MlxchatError
from mlxchat.model.arithmetic import activation_bytes, flops_per_token, parameters
from mlxchat.model.config import ASPECT_RATIO, GPTConfig
from mlxchat.optim.schedule import width_scale

LARGEST_DEPTH = 64
LARGEST_DEVICE_BATCH = 32  # nanochat's
TRAINING_BYTES = 14  # for each parameter, at least: itself, gradient, sum, half an optimizer state
EVALUATION_STEPS = 20  # an evaluation sees the tokens of so many training steps, as nanochat's
BUILTIN = "builtin"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a run or a dataset: a folder's name


class DataConfig(BaseModel):
    """Which data, and which tokenizer."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, title="Data and tokenizer"
    )

    dataset: str = Field(
        "fineweb-edu",
        pattern=NAME,
        description="fineweb-edu, climbmix (licensed for non-commercial use only), builtin, or a "
        "name given to `data fetch --from`.",
    )
    data_dir: Path | None = Field(
        None, description="A folder of shards to train on instead; its last one validates."
    )
    num_shards: int | None = Field(None, ge=1, description="Training shards to use. Default: all.")
    streaming: bool = Field(
        False, description="Fetch shards ahead of their use, and drop those used."
    )
    max_cached_shards: int = Field(
        20, ge=2, description="With --streaming: training shards on disk at most."
    )
    endpoint: str | None = Field(
        None, description="The hub to fetch from. Default: $HF_ENDPOINT, or https://huggingface.co."
    )
    tokenizer_dir: Path | None = Field(
        None, description="The tokenizer's folder. Default: in $MLXCHAT_HOME."
    )
    vocab_size: int | None = Field(
        None,
        ge=265,
        le=1_000_000,
        description="Tokens of a tokenizer, where one is trained. Default: 65,536; fewer for "
        "little text.",
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Of the initial parameters and the built-in corpus."
    )

    @field_validator("data_dir", "tokenizer_dir")
    @classmethod
    def _wherever_one_is(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    @property
    def is_builtin(self) -> bool:
        """Whether the data is the built-in corpus."""
        return self.dataset == BUILTIN and self.data_dir is None


class PretrainConfig(DataConfig):
    """What a pretraining run is told. ``None`` means: derive it; the plan says from what."""

    model_config = ConfigDict(title="Model and training")

    depth: int = Field(
        12, ge=1, le=LARGEST_DEPTH, description="Layers; the one dial: width is 64 times as much."
    )
    head_dim: int = Field(
        128, ge=2, description="Width of a head, at most; the width is shared out."
    )
    max_seq_len: int = Field(2048, ge=2, le=65_536, description="Context length in tokens.")
    num_iterations: int | None = Field(
        None, ge=1, description="Optimizer steps. Default: from the data ratio."
    )
    target_param_data_ratio: float = Field(
        20.0, gt=0, description="Training tokens for each parameter."
    )
    device_batch_size: int | None = Field(
        None, ge=1, description="Rows computed at once. Default: what fits in a quarter of memory."
    )
    total_batch_size: int = Field(
        524_288, ge=1, description="Tokens in one optimizer step, gradients accumulated."
    )
    embedding_lr: float = Field(0.2, gt=0, description="Learning rate of the embedding (AdamW).")
    unembedding_lr: float = Field(0.004, gt=0, description="Learning rate of the head (AdamW).")
    matrix_lr: float = Field(0.02, gt=0, description="Learning rate of the matrices (Muon).")
    weight_decay: float = Field(0.0, ge=0, description="Of embedding and head (AdamW).")
    grad_clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 turns it off.")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of steps that warm up.")
    warmdown_ratio: float = Field(0.2, ge=0, le=1, description="Share of steps that cool down.")
    final_lr_frac: float = Field(
        0.0, ge=0, le=1, description="Last learning rate, as a share of the full one."
    )
    eval_every: int = Field(250, ge=0, description="Steps between evaluations; 0 for none.")
    eval_tokens: int | None = Field(
        None,
        ge=1,
        description="Validation tokens. Default: 20 times the total batch, or what there is.",
    )
    sample_every: int = Field(2000, ge=0, description="Steps between samples; 0 for none.")
    save_every: int = Field(
        50, ge=0, description="Steps between checkpoints; 0 for the last one only."
    )
    keep: int = Field(3, ge=1, description="Checkpoints to keep.")
    model_tag: str | None = Field(
        None,
        pattern=NAME,
        description="Name of the run. Default: d and the depth.",
    )

    @property
    def tag(self) -> str:
        """The run's name."""
        return self.model_tag or f"d{self.depth}"

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """Settings by which this run would not be the stored one, ``name (then -> now)`` each.

        Those in `INDEPENDENT` may differ: they change what is seen and kept, not what is learnt.
        """
        then = PretrainConfig().model_dump(mode="json") | stored
        now = self.model_dump(mode="json")
        return [
            f"--{name.replace('_', '-')} ({_shown(then[name])} -> {_shown(value)})"
            for name, value in now.items()
            if name not in INDEPENDENT and then[name] != value
        ]


INDEPENDENT = frozenset(
    {
        "streaming",
        "max_cached_shards",
        "endpoint",
        "eval_every",
        "eval_tokens",
        "sample_every",
        "save_every",
        "keep",
        "model_tag",
    }
)


class Plan(BaseModel):
    """What a run does, derived once and kept with its checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: GPTConfig
    parameters: int
    flops_per_token: int
    num_iterations: int
    device_batch_size: int
    accumulation: int  # micro-batches in a step
    tokens_per_step: int
    embedding_lr: float
    unembedding_lr: float
    matrix_lr: float
    eval_batches: int

    def summary(self) -> str:
        """The plan in a line."""
        T = self.model.sequence_len
        return (
            f"{self.parameters:,} parameters in {self.model.n_layer} layers of width "
            f"{self.model.n_embd}, vocabulary {self.model.vocab_size:,}; "
            f"{self.num_iterations:,} steps of {self.tokens_per_step:,} tokens "
            f"({self.device_batch_size} rows of {T:,}, {self.accumulation} times); learning rates "
            f"{self.embedding_lr:.3g} embedding, {self.unembedding_lr:.3g} head, "
            f"{self.matrix_lr:.3g} matrices."
        )


class Capacity(NamedTuple):
    """What the machine has."""

    memory: int  # bytes
    value_bytes: int  # of one activation
    fused_attention: bool  # whether the scores of attention are never held


def plan(config: PretrainConfig, vocab_size: int, capacity: Capacity) -> Plan:
    """Derive what the settings leave open.

    Args:
        vocab_size: of the tokenizer.
        capacity: of the machine, which bounds the default of ``device_batch_size``.

    Raises:
        MlxchatError: the batch sizes do not divide (those that do are named), heads cannot share
            out the width, or the machine cannot hold the model.
    """
    model = _model(config, vocab_size)
    _require_memory(model, capacity.memory)
    device_batch = config.device_batch_size or _fitting_batch(config, model, capacity)
    rows, left = divmod(config.total_batch_size, config.max_seq_len)
    if left or rows % device_batch:
        raise _indivisible(config, device_batch)
    counts = sum(parameters(model).values())
    steps = config.num_iterations
    if steps is None:
        steps = int(config.target_param_data_ratio * counts) // config.total_batch_size
    if steps < 1:
        raise MlxchatError(
            f"{config.target_param_data_ratio:g} tokens for each of {counts:,} parameters are less "
            f"than one step of {config.total_batch_size:,} tokens.",
            "Give --num-iterations, or a smaller --total-batch-size.",
        )
    scale = width_scale(model.n_embd)
    return Plan(
        model=model,
        parameters=counts,
        flops_per_token=flops_per_token(model),
        num_iterations=steps,
        device_batch_size=device_batch,
        accumulation=rows // device_batch,
        tokens_per_step=config.total_batch_size,
        embedding_lr=config.embedding_lr * scale,
        unembedding_lr=config.unembedding_lr * scale,
        matrix_lr=config.matrix_lr,
        eval_batches=evaluation_batches(config, device_batch),
    )


def evaluation_batches(config: PretrainConfig, device_batch: int) -> int:
    """Batches of an evaluation, one at least."""
    tokens = config.eval_tokens or EVALUATION_STEPS * config.total_batch_size
    return max(1, tokens // (device_batch * config.max_seq_len))


def _model(config: PretrainConfig, vocab_size: int) -> GPTConfig:
    def of(depth: int) -> GPTConfig:
        return GPTConfig.from_depth(depth, vocab_size, config.max_seq_len, config.head_dim)

    try:
        return of(config.depth)
    except ValidationError as error:
        working = []
        for depth in range(1, LARGEST_DEPTH + 1):
            with suppress(ValidationError):
                working.append(of(depth).n_layer)
        near = sorted(working, key=lambda depth: abs(depth - config.depth))[:2]
        others = f"--depth {' or '.join(map(str, sorted(near)))}, or " if near else ""
        raise MlxchatError(
            f"A depth of {config.depth} makes a width of {ASPECT_RATIO * config.depth} that cannot "
            f"be shared out among heads of {config.head_dim}.",
            f"Use {others}another --head-dim.",
        ) from error


def _require_memory(model: GPTConfig, memory: int) -> None:
    counts = sum(parameters(model).values())
    if TRAINING_BYTES * counts > memory:
        raise MlxchatError(
            f"Training {counts:,} parameters takes more than {TRAINING_BYTES * counts / 1e9:,.0f} "
            f"GB; this machine has {memory / 1e9:,.0f} GB.",
            "Use a smaller --depth.",
        )


def _fitting_batch(config: PretrainConfig, model: GPTConfig, capacity: Capacity) -> int:
    """The most rows, dividing a step's, whose activations fit in a quarter of memory."""
    rows = max(1, config.total_batch_size // config.max_seq_len)
    row_bytes = activation_bytes(model, capacity.value_bytes, capacity.fused_attention)
    fitting = capacity.memory // 4 // row_bytes
    allowed = [n for n in range(1, LARGEST_DEVICE_BATCH + 1) if rows % n == 0 and n <= fitting]
    return max(allowed, default=1)


def _indivisible(config: PretrainConfig, device_batch: int) -> MlxchatError:
    T, total = config.max_seq_len, config.total_batch_size
    problem = (
        f"A total batch of {total:,} tokens is not a multiple of {device_batch} rows "
        f"of {T:,} tokens ({device_batch * T:,})."
    )
    rows, left = divmod(total, T)
    if left:
        below, above = max(1, rows // device_batch), rows // device_batch + 1
        totals = sorted({n * device_batch * T for n in (below, above)})
        return MlxchatError(
            problem, f"Use --total-batch-size {' or '.join(str(n) for n in totals)}."
        )
    divisors = [str(n) for n in range(1, min(rows, 64) + 1) if rows % n == 0]
    return MlxchatError(problem, f"Use --device-batch-size {', '.join(divisors)}.")


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)


QUICKSTART = PretrainConfig(
    dataset=BUILTIN,
    model_tag="quickstart",
    depth=2,
    head_dim=64,  # two heads: with one, the model hardly learns to read
    max_seq_len=128,
    device_batch_size=16,
    total_batch_size=16 * 128,
    num_iterations=900,
    matrix_lr=0.01,
    embedding_lr=0.04,
    unembedding_lr=0.0033,
    warmdown_ratio=0.5,
    eval_every=300,
    eval_tokens=16 * 128 * 16,
    sample_every=0,
    save_every=300,
    keep=1,
)
