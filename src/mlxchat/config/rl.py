"""Settings of reinforcement learning. Pure: quick to import."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from mlxchat.config.inference import Sampling
from mlxchat.config.lora import AdapterRun
from mlxchat.config.pretrain import LARGEST_CONTEXT
from mlxchat.config.run import LARGEST_COUNT, RunConfig, name_after
from mlxchat.data.questions.choice import NAMED_TASKS
from mlxchat.errors import ConfigError
from mlxchat.home import expanded, from_anywhere

INDEPENDENT_HERE = frozenset({"eval_questions", "eval_samples", "task_data"})
PASS_SIZE = 8  # nanochat's device batch
BUILT_IN_REWARDS = ("answer", "form")  # others are functions of files


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
        description="Model to start from, fine-tuned on conversations: the name of a run, or "
        "a model directory. Default: the most recently saved fine-tuned model.",
    )
    step: int | None = Field(
        None, ge=0, description="Step of that model's checkpoint. Default: the newest."
    )
    task: str = Field(
        "arithmetic",
        json_schema_extra={"metavar": "NAME|PATH"},
        description="Questions with checkable answers: arithmetic, spelling or counting "
        "(generated), gsm8k, or a .jsonl file with a question and an answer in each row.",
    )
    level: int | None = Field(
        None,
        ge=1,
        description="Difficulty of generated questions. Default: the level at which the model "
        "currently answers 20 to 60% correctly.",
    )
    calculator: bool = Field(
        False, description="Phrase arithmetic questions so that the model uses its calculator."
    )
    task_data: Path | None = Field(
        None,
        description="Folder with gsm8k's files, laid out as on the Hugging Face hub. Default: "
        "task_data in $MLXCHAT_HOME.",
    )
    reward: list[str] | None = Field(
        None,
        json_schema_extra={"metavar": "FILE:FUNCTION"},
        description="Reward: your own Python function, which takes prompt, completion and "
        "answer as strings and returns a number; or answer, the task's own check; or form, which "
        "is 1 if the completion has a number where the answer should be. Append :0.5 to weight "
        "it. Repeat to add up several. Default: answer.",
    )
    examples: int = Field(16, ge=1, le=4096, description="Questions per step.")
    samples: int = Field(16, ge=2, le=4096, description="Answers to sample per question.")
    max_tokens: int = Field(
        256, ge=1, le=LARGEST_CONTEXT, description="Maximum length of an answer in tokens."
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="Sampling temperature for these answers."
    )
    top_k: int | None = Field(
        50,
        ge=1,
        description="Sample only from this many of the most likely tokens; a large "
        "number keeps all.",
    )
    advantage: Literal["mean", "std"] = Field(
        "mean",
        description="Advantage of an answer. mean: its reward minus the mean reward for that "
        "question; std: that difference divided by the standard deviation, which gives hard and "
        "easy questions more weight.",
    )
    skip_equal: bool = Field(
        False,
        description="Average the loss only over questions whose answers got different "
        "rewards. The others contribute no gradient; by default they count as zeros.",
    )
    pass_size: int | None = Field(
        None,
        ge=1,
        description="Answers to one question whose tokens are averaged together in the loss. "
        "The fewer there are, the more each token of a short answer counts. Default: "
        f"{PASS_SIZE}, or all if {PASS_SIZE} does not divide them.",
    )
    epochs: int | None = Field(
        None, ge=1, le=1000, description="Passes over the questions. Default: 1."
    )
    num_iterations: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Number of optimizer steps. Default: derived from the epochs.",
    )
    embedding_lr: float = Field(
        0.2, ge=0, le=10, description="AdamW learning rate of the embedding."
    )
    unembedding_lr: float = Field(
        0.004, ge=0, le=10, description="AdamW learning rate of the head."
    )
    matrix_lr: float = Field(0.02, ge=0, le=10, description="Muon learning rate of the matrices.")
    init_lr_frac: float = Field(
        0.05, gt=0, le=10, description="Factor applied to all learning rates."
    )
    schedule: Literal["linear", "cosine"] = Field(
        "linear", description="How the learning rates decay to 0."
    )
    weight_decay: float = Field(0.0, ge=0, le=10, description="Weight decay.")
    grad_clip: float = Field(0.0, ge=0, description="Maximum gradient norm; 0 disables clipping.")
    eval_every: int = Field(20, ge=0, description="Steps between evaluations; 0: never.")
    eval_questions: int = Field(
        200, ge=1, le=100_000, description="Maximum number of held-out questions per evaluation."
    )
    eval_samples: int = Field(
        8,
        ge=1,
        le=256,
        description="Answers to sample per held-out question, which is the k of pass@k.",
    )
    sample_every: int = Field(20, ge=0, description="Steps between samples; 0: never.")
    save_every: int = Field(
        20, ge=0, description="Steps between checkpoints; 0: save only the last step."
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Random seed for the questions, their order and sampling."
    )

    @field_validator("task_data")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and expanded(path).absolute()

    @field_validator("task")
    @classmethod
    def _absolute_task(cls, task: str) -> str:
        return from_anywhere(task, NAMED_TASKS.__contains__)

    @field_validator("reward")
    @classmethod
    def _absolute_reward(cls, reward: list[str] | None) -> list[str] | None:
        return reward and [from_anywhere(text, BUILT_IN_REWARDS.__contains__) for text in reward]

    @model_validator(mode="after")
    def _consistent(self) -> "RlConfig":
        if self.epochs and self.num_iterations:
            raise ConfigError(
                f"`epochs={self.epochs}` determines the number of steps: "
                f"`num_iterations={self.num_iterations}` cannot be given as well.",
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
