"""Settings of reinforcement learning. Pure: quick to import."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlxchat.config.inference import Sampling
from mlxchat.config.lora import AdapterRun
from mlxchat.config.pretrain import LARGEST_CONTEXT
from mlxchat.config.run import LARGEST_COUNT, RunConfig, name_after
from mlxchat.errors import ConfigError
from mlxchat.home import expanded

INDEPENDENT_HERE = frozenset({"eval_questions", "eval_samples", "task_data"})
PASS_SIZE = 8  # nanochat's device batch


class RlConfig(AdapterRun, RunConfig):
    """Settings of a reinforcement learning run. The plan derives those that are ``None``.

    The defaults are nanochat's (chat_rl at commit 92d63d4), for both architectures, but for how
    often it evaluates and saves.
    """

    model_config = ConfigDict(title="Reinforcement learning")

    independent = RunConfig.independent | INDEPENDENT_HERE

    source: str | None = Field(
        None,
        json_schema_extra={"metavar": "MODEL", "complete": "runs"},
        description="Model to begin with, fine-tuned on conversations: the name of a run, or a "
        "model directory. Default: the fine-tuned model saved last.",
    )
    step: int | None = Field(
        None, ge=0, description="Saved step of that model. Default: the newest."
    )
    task: str = Field(
        "arithmetic",
        json_schema_extra={"metavar": "NAME|PATH"},
        description="Questions whose answers can be checked: arithmetic, spelling or counting "
        "(generated), gsm8k, or a .jsonl file with a question and an answer in each row.",
    )
    level: int | None = Field(
        None,
        ge=1,
        description="Difficulty of generated questions. Default: the one of which the model now "
        "gets 20 to 60% right.",
    )
    calculator: bool = Field(
        False, description="Arithmetic is asked so that the calculator answers it."
    )
    task_data: Path | None = Field(
        None,
        description="Folder of gsm8k's files, laid out as on the hub. Default: task_data in "
        "$MLXCHAT_HOME.",
    )
    reward: list[str] | None = Field(
        None,
        json_schema_extra={"metavar": "FILE:FUNCTION"},
        description="Python function of your own that takes prompt, completion and answer as "
        "texts and returns a number; or answer, the task's own check, or form, 1 if there is a "
        "number where the answer is looked for. Append :0.5 to weight it; repeat for a sum of "
        "several. Default: answer.",
    )
    examples: int = Field(16, ge=1, le=4096, description="Questions in a step.")
    samples: int = Field(16, ge=2, le=4096, description="Answers that are drawn to each question.")
    max_tokens: int = Field(
        256, ge=1, le=LARGEST_CONTEXT, description="Maximum length of an answer in tokens."
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="Divisor of the logits when answers are drawn."
    )
    top_k: int | None = Field(
        50, ge=1, description="Draw among so many of the likeliest tokens; a large number: all."
    )
    advantage: Literal["mean", "std"] = Field(
        "mean",
        description="What a reward counts for: its difference to the mean of the question's "
        "rewards, or that divided by their standard deviation, by which hard and easy questions "
        "count more.",
    )
    skip_equal: bool = Field(
        False,
        description="Average over the questions only whose answers got different rewards. The "
        "others have no gradient; by default they count as zeros.",
    )
    pass_size: int | None = Field(
        None,
        ge=1,
        description="Answers to a question over whose tokens the loss is averaged: in short ones "
        f"a token counts more. Default: {PASS_SIZE}, or all if that does not divide them.",
    )
    epochs: int | None = Field(
        None, ge=1, le=1000, description="Passes through the questions. Default: one."
    )
    num_iterations: int | None = Field(
        None, ge=1, le=LARGEST_COUNT, description="Optimizer steps. Default: from the epochs."
    )
    embedding_lr: float = Field(0.2, ge=0, le=10, description="AdamW's rate of the embedding.")
    unembedding_lr: float = Field(0.004, ge=0, le=10, description="AdamW's rate of the head.")
    matrix_lr: float = Field(0.02, ge=0, le=10, description="Muon's rate of the matrices.")
    init_lr_frac: float = Field(0.05, gt=0, le=10, description="Factor on all learning rates.")
    schedule: Literal["linear", "cosine"] = Field(
        "linear", description="How the learning rates fall to 0."
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Weight decay.")
    grad_clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0 disables clipping.")
    eval_every: int = Field(20, ge=0, description="Steps between evaluations; 0: never.")
    eval_questions: int = Field(
        200, ge=1, le=100_000, description="Held-out questions in an evaluation, at most."
    )
    eval_samples: int = Field(
        8, ge=1, le=256, description="Answers to each of them: pass@k is shown for this k."
    )
    sample_every: int = Field(20, ge=0, description="Steps between samples; 0: never.")
    save_every: int = Field(20, ge=0, description="Steps between checkpoints; 0: only the last.")
    seed: int = Field(
        42, ge=0, lt=2**32, description="Random seed of the questions, their order and the draws."
    )

    @field_validator("task_data")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and expanded(path).absolute()

    @model_validator(mode="after")
    def _consistent(self) -> "RlConfig":
        if self.epochs and self.num_iterations:
            raise ConfigError(
                f"`epochs={self.epochs}` determines the number of steps: "
                f"`num_iterations={self.num_iterations}` does not go with it.",
                "Leave one of them out.",
            )
        if self.samples % self.samples_per_pass:
            raise ConfigError(
                f"`pass_size={self.pass_size}` does not divide `samples={self.samples}`.",
                "Use one that does, or leave it out.",
            )
        self.require_effect(
            "embedding_lr", "unembedding_lr", "matrix_lr", "init_lr_frac", "weight_decay"
        )
        return self

    @property
    def samples_per_pass(self) -> int:
        """The answers to a question over whose tokens the loss is averaged."""
        if self.pass_size:
            return self.pass_size
        return self.samples if self.samples % PASS_SIZE else PASS_SIZE

    @property
    def rows(self) -> int:
        """The answers in a step."""
        return self.examples * self.samples

    @property
    def sampling(self) -> Sampling:
        """The sampling of the answers."""
        return Sampling(temperature=self.temperature, top_k=self.top_k)

    @property
    def tag(self) -> str:
        """The run's name."""
        if self.model_tag or self.source is None:
            return self.model_tag or "rl"
        return name_after(self.source, f"-rl{'-lora' if self.lora else ''}")
