"""Settings of supervised fine-tuning, most of them mid-training's too. Pure: quick to import."""

from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlxchat.config.lora import AdapterRun
from mlxchat.config.run import LARGEST_COUNT, RunConfig, name_after
from mlxchat.data.chats.sources import VALIDATION_SHARE, is_named_source
from mlxchat.data.files import UTF_8
from mlxchat.errors import ConfigError
from mlxchat.home import from_anywhere

ENCODING = "Encoding of text without a byte-order mark, such as latin-1."
SKIP_BAD = "Skip lines and rows that cannot be read, and report how many."


class ConversationConfig(AdapterRun, RunConfig):
    """Settings of a run that trains a model further on conversations.

    The plan derives those that are ``None``. The defaults are those of nanochat's fine-tuning
    (chat_sft at commit 92d63d4), for both architectures.
    """

    model_config = ConfigDict(title="Training on conversations")

    suffix: ClassVar[str]  # of the run's name by default, after that of the model

    source: str | None = Field(
        None, description="Model to start from: the name of a run, or a model directory."
    )
    step: int | None = Field(
        None, ge=0, description="Step of that model's checkpoint. Default: the newest."
    )
    data: list[str] | None = Field(
        None,
        json_schema_extra={"metavar": "PATH"},
        description="Conversations: a .jsonl, .json, .csv or .parquet file, a folder of "
        "these, builtin, or generated questions with their correct answers: arithmetic, spelling "
        "or counting, with a level as in arithmetic-4, or with the calculator as in "
        "arithmetic-4-calculator. Append :3 to use each conversation three times per epoch. "
        "Repeat for several sources.",
    )
    encoding: str = Field(UTF_8, description=ENCODING, json_schema_extra={"metavar": "NAME"})
    skip_bad: bool = Field(False, description=SKIP_BAD)
    identity: str | None = Field(
        None,
        json_schema_extra={"metavar": "TEXT"},
        description='What the model says about itself: "name=Ada, made by=Grace", plus any '
        "other facts.",
    )
    spelling: int = Field(
        0,
        ge=0,
        le=10**6,
        description="Number of generated conversations about spelling words and counting "
        "letters to add.",
    )
    validation_share: float = Field(
        VALIDATION_SHARE,
        gt=0,
        lt=1,
        description="Fraction of the conversations to hold out for validation.",
    )
    epochs: int | None = Field(
        None, ge=1, le=1000, description="Passes over the conversations. Default: 1."
    )
    num_iterations: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Number of optimizer steps. Default: derived from the epochs.",
    )
    total_batch_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Tokens per optimizer step, including padding. Default: as in "
        "pretraining, reduced if necessary to get 100 steps.",
    )
    init_lr_frac: float = Field(
        0.8,
        gt=0,
        le=10,
        description="Initial learning rates as a fraction of pretraining's (for a modern "
        "model, before scaling by batch size).",
    )
    warmup_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Warm-up: fraction of the steps over which the learning rate rises.",
    )
    warmdown_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Cool-down: fraction of the steps over which the learning rate decays.",
    )
    final_lr_frac: float = Field(
        0.0, ge=0, le=1, description="Final learning rate as a fraction of the initial one."
    )
    grad_clip: float = Field(0.0, ge=0, description="Maximum gradient norm; 0 disables clipping.")
    load_optimizer: bool = Field(
        False, description="Start from the optimizer state at the end of pretraining."
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Random seed for the order of conversations and for generated ones.",
    )

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: list[str] | None) -> list[str] | None:
        return data and [from_anywhere(text, is_named_source) for text in data]

    @model_validator(mode="after")
    def _require_one_length(self) -> "ConversationConfig":
        if self.epochs and self.num_iterations:
            raise ConfigError(
                f"`epochs={self.epochs}` determines the number of steps: "
                f"`num_iterations={self.num_iterations}` cannot be given as well.",
                "Leave one of them out.",
            )
        self.require_effect("init_lr_frac", "load_optimizer")
        return self

    @property
    def tag(self) -> str:
        """The run's name."""
        if self.model_tag or self.source is None:
            return self.model_tag or self.suffix
        return name_after(self.source, f"-{self.suffix}{'-lora' if self.lora else ''}")

    @property
    def data_name(self) -> str | None:
        """The name of the first file of conversations, without its endings; None without one."""
        return Path(self.data[0]).name.split(".")[0] if self.data else None


class SftConfig(ConversationConfig):
    """Settings of a fine-tuning run."""

    suffix = "sft"

    source: str | None = Field(
        None,
        json_schema_extra={"metavar": "MODEL", "complete": "runs"},
        description="Model to fine-tune: the name of a run, or a model directory. Default: "
        "the most recently saved base or mid-trained model.",
    )
