"""Fine-tuning's settings: what one may say. Pure: no arrays, quick to import."""

from pydantic import ConfigDict, Field, model_validator

from mlxchat.config.run import LARGEST_COUNT, RunConfig, model_name
from mlxchat.data.chats.sources import VALIDATION_SHARE
from mlxchat.errors import ConfigError


class SftConfig(RunConfig):
    """What a run of fine-tuning is told. ``None`` means: derive it; the plan says from what.

    The defaults are nanochat's (chat_sft at commit 92d63d4), for both architectures.
    """

    model_config = ConfigDict(title="Fine-tuning")

    source: str | None = Field(
        None,
        description="The model to begin with: a run's name, or a model's directory. Default: the "
        "base model saved last.",
    )
    step: int | None = Field(None, ge=0, description="Its saved step. Default: the newest.")
    data: list[str] | None = Field(
        None,
        json_schema_extra={"metavar": "PATH"},
        description="Conversations: a .jsonl, .json or .parquet file, or a folder of those; or "
        "builtin. With :3 behind it, each comes three times an epoch. Give it once for each.",
    )
    identity: str | None = Field(
        None,
        json_schema_extra={"metavar": "TEXT"},
        description='Who the model is: "name=Ada, made by=Grace", and other facts as you like.',
    )
    spelling: int = Field(
        0, ge=0, le=10**6, description="Conversations, made up, that spell words and count letters."
    )
    validation_share: float = Field(
        VALIDATION_SHARE,
        gt=0,
        lt=1,
        description="Share of the conversations that are held out.",
    )
    epochs: int | None = Field(
        None, ge=1, le=1000, description="Times to go through the conversations. Default: once."
    )
    num_iterations: int | None = Field(
        None, ge=1, le=LARGEST_COUNT, description="Optimizer steps. Default: from the epochs."
    )
    total_batch_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Tokens in one optimizer step, padding included. Default: as in pretraining, "
        "or as few as it takes for 100 steps.",
    )
    init_lr_frac: float = Field(
        0.8,
        gt=0,
        le=10,
        description="Learning rates, as a share of pretraining's (a modern model's: before they "
        "are scaled by the batch).",
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of steps that warm up.")
    warmdown_ratio: float = Field(0.5, ge=0, le=1, description="Share of steps that cool down.")
    final_lr_frac: float = Field(
        0.0, ge=0, le=1, description="Last learning rate, as a share of the first."
    )
    grad_clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0 for no limit.")
    load_optimizer: bool = Field(
        False, description="Go on with the momentum that pretraining ended with."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Of the order, and of what is made up.")

    @model_validator(mode="after")
    def _one_length(self) -> "SftConfig":
        if self.epochs and self.num_iterations:
            raise ConfigError(
                f"`epochs={self.epochs}` determines the number of steps: "
                f"`num_iterations={self.num_iterations}` does not go with it.",
                "Leave one of them out.",
            )
        return self

    @property
    def tag(self) -> str:
        """The run's name."""
        if self.model_tag or self.source is None:
            return self.model_tag or "sft"
        return f"{model_name(self.source)}-sft"
