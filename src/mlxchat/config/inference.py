"""Settings of generation, of evaluating models and of benchmarks. Pure: quick to import."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from mlxchat.config.pretrain import LARGEST_CONTEXT, LARGEST_DEPTH
from mlxchat.config.sft import ENCODING, SKIP_BAD
from mlxchat.config.units import spell_size
from mlxchat.data.chats.sources import VALIDATION_SHARE
from mlxchat.data.files import UTF_8
from mlxchat.data.questions.choice import GENERATED, TaskChoice
from mlxchat.errors import ConfigError
from mlxchat.home import expanded
from mlxchat.model.config import HEAD_DIM, Architecture

MAX_TOKENS = "Maximum length of an answer in tokens."


class Sampling(BaseModel):
    """The choice of the next token. The penalty applies first, then the filters in field order."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="Sampling")

    temperature: float = Field(
        0.6,
        ge=0,
        description="Sampling temperature, which divides the logits: 0 always picks the most "
        "likely token, 1 leaves the probabilities unchanged.",
    )
    top_k: int | None = Field(
        50,
        ge=1,
        description="Sample only from this many of the most likely tokens; a large number "
        "keeps all.",
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Sample only from the most likely tokens whose probabilities add up to "
        "this (nucleus sampling).",
    )
    min_p: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Drop tokens less probable than this fraction of the most likely token's "
        "probability.",
    )
    repetition_penalty: float = Field(
        1.0,
        ge=1,
        description="Make tokens that have already occurred less likely; 1 has no effect.",
    )


class TextSettings(BaseModel):
    """The number of tokens that a program generates, and the seed of its draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(512, ge=1, description=MAX_TOKENS)
    seed: int = Field(42, ge=0, lt=2**64, description="Random seed for sampling.")


def _meaningful(system: str | None) -> str | None:
    """Return None in place of blanks, and replace the bytes of other encodings than UTF-8."""
    return system.encode("utf-8", "replace").decode() if system and system.strip() else None


SystemMessage = Annotated[str | None, AfterValidator(_meaningful)]
READ_FIRST = "As in nanochat, it is put at the start of the first message."


class ChatSettings(TextSettings, Sampling):
    """Settings that may change between the answers of a conversation."""

    model_config = ConfigDict(title=None)

    system: SystemMessage = Field(
        None,
        description=f"System message: instructions for the whole conversation. {READ_FIRST}",
        json_schema_extra={"metavar": "TEXT"},
    )


Dtype = Literal["auto", "bfloat16", "float16", "float32"]  # of activations

TaskName = Literal["arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval", "spelling"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
ALL = "all"
_TASKS_KNOWN = (
    f"Give {', '.join(TASK_NAMES)} or {ALL}; or a generated task: {', '.join(GENERATED)}, with a "
    "level as in arithmetic-4."
)


class ChatEvalConfig(BaseModel):
    """The tasks and conversations that a chat model is evaluated on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: str | None = Field(
        None,
        description=f"Comma-separated tasks: any of {', '.join(TASK_NAMES)}; all, which means "
        "these six; or generated questions that training never uses: arithmetic, counting, or a "
        "single level, such as arithmetic-4 or spelling-2. Default: those of the six whose data "
        "is on disk.",
        json_schema_extra={"metavar": "NAMES"},
    )
    task_data: Path | None = Field(
        None,
        description="Folder with the task files, laid out as on the Hugging Face hub. "
        "Default: task_data in $MLXCHAT_HOME.",
    )
    data: list[str] | None = Field(
        None,
        description="Conversations, in any format that sft reads; repeat for several sources. "
        "Measures the loss on the held-out ones and checks the final replies. With builtin, also "
        "scores the answers to 200 questions that appear in none of its conversations.",
        json_schema_extra={"metavar": "PATH"},
    )
    encoding: str = Field(UTF_8, description=ENCODING, json_schema_extra={"metavar": "NAME"})
    skip_bad: bool = Field(False, description=SKIP_BAD)
    validation_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Fraction of `data` that sft held out. Default: the fraction the model "
        f"was fine-tuned with, or {VALIDATION_SHARE:g}.",
    )
    max_problems: int | None = Field(
        None,
        ge=1,
        description="Maximum number of problems per task, and of conversations; every model "
        "gets the same ones.",
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Answers to generate in parallel.")
    max_tokens: int = Field(512, ge=1, le=LARGEST_CONTEXT, description=MAX_TOKENS)
    allow_code_execution: bool = Field(
        False, description="Run the programs that the model writes for humaneval, on this machine."
    )

    @field_validator("task_data")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and expanded(path).absolute()

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: str | None) -> str | None:
        if tasks is not None and not _split(tasks):
            raise ConfigError("`tasks` names no task.", _TASKS_KNOWN)
        for name in _split(tasks):
            if name not in (*TASK_NAMES, ALL) and TaskChoice.parse(name) is None:
                raise ConfigError(f"There is no task {name!r}.", _TASKS_KNOWN)
        return tasks

    @property
    def named(self) -> tuple[str, ...] | None:
        """The tasks in the settings, each once, generated ones last; None if none is named."""
        if self.tasks is None:
            return None
        names = dict.fromkeys(_split(self.tasks))
        generated = (name for name in names if name not in (*TASK_NAMES, ALL))
        return (*(name for name in TASK_NAMES if ALL in names or name in names), *generated)


def _split(tasks: str | None) -> list[str]:
    return [name.strip().lower() for name in (tasks or "").split(",") if name.strip()]


class BaseEvalConfig(BaseModel):
    """The measures of a base model, and what each of them takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    core: bool = Field(
        False,
        description="Evaluate on CORE, nanochat's benchmark for base models: 22 tasks, whose "
        "examples are downloaded once (8 MB).",
    )
    tasks: str | None = Field(
        None,
        description="Comma-separated CORE tasks, such as arc_easy,squad. Default: all.",
        json_schema_extra={"metavar": "NAMES"},
    )
    max_per_task: int | None = Field(
        None,
        ge=1,
        description="Maximum number of examples per task: the first ones in nanochat's order. "
        "During training, nanochat uses 500. Default: all, about 91,000 in total.",
    )
    bundle: Path | None = Field(
        None,
        description="CORE's examples: nanochat's eval_bundle.zip, or the folder it was "
        "unpacked into. Default: eval_bundle.zip in $MLXCHAT_HOME.",
    )
    memory_limit: str | None = Field(
        None,
        description="Memory for the CORE evaluation, such as 12GB or 800MB. As many examples "
        "are batched as fit beside the model. Default: 90% of free memory.",
        json_schema_extra={"metavar": "SIZE"},
    )
    text: list[str] | None = Field(
        None,
        description="File on which to measure bits per byte: plain text, or rows with a "
        "column named text, compressed or not. Repeat for several files.",
        json_schema_extra={"metavar": "PATH"},
    )
    validation: bool = Field(
        False, description="Measure bits per byte on the run's validation text."
    )
    eval_tokens: int = Field(65_536, ge=1, description="Number of validation tokens to read.")
    samples: bool = Field(
        False, description="Show how the model continues nanochat's seven prompts."
    )

    @field_validator("bundle")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and expanded(path).absolute()

    @field_validator("memory_limit")
    @classmethod
    def _canonical_size(cls, size: str | None) -> str | None:
        return size and spell_size(size)

    @model_validator(mode="after")
    def _measures_what_it_limits(self) -> "BaseEvalConfig":
        given = [name for name in ("max_per_task", "bundle") if getattr(self, name) is not None]
        if given and not (self.wants_core or self.names_nothing):
            raise ConfigError(
                f"`{given[0]}` applies to CORE, which is not being measured.",
                f"Add `core`, or leave out `{given[0]}`.",
            )
        return self

    @property
    def wants_core(self) -> bool:
        """Whether CORE, or tasks of it, are asked for."""
        return self.core or self.tasks is not None

    @property
    def names_nothing(self) -> bool:
        """Whether it is left open what to measure."""
        return not (self.wants_core or self.text or self.validation or self.samples)


class BenchConfig(BaseModel):
    """The model to benchmark, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    arch: Architecture = Field(
        "classic",
        description="classic: nanochat as of October 2025; modern: nanochat as of July 2026.",
    )
    depth: int = Field(
        4,
        ge=1,
        le=LARGEST_DEPTH,
        description="Number of layers. The model's width is 64 times the depth.",
    )
    head_dim: int = Field(
        HEAD_DIM,
        ge=2,
        description="Width of an attention head (an upper bound for classic models).",
    )
    max_seq_len: int = Field(
        512, ge=16, le=LARGEST_CONTEXT, description="Context length in tokens."
    )
    device_batch_size: int = Field(8, ge=1, le=10**9, description="Rows per training micro-batch.")
    vocab_size: int = Field(4096, ge=265, le=1_000_000, description="Vocabulary size in tokens.")
    steps: int = Field(20, ge=3, description="Training steps to time; the median is reported.")
    seconds: float = Field(
        30,
        gt=0,
        description="Stop training after this many seconds, once at least three steps "
        "have been timed.",
    )
