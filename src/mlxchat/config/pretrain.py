"""Pretraining's settings: what one may say. Pure: no arrays, no files, quick to import.

Names for settings: what each stands for, declared once. Pure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlxchat.config.recipes import RECIPES, Recipe
from mlxchat.config.run import INDEPENDENT, LARGEST_COUNT, NAME, RunConfig, model_name
from mlxchat.config.units import spell_duration, to_seconds
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.shards import dataset_names
from mlxchat.errors import ConfigError
from mlxchat.home import DEFAULT_DATASET
from mlxchat.model.config import Architecture

Preset = Literal["low-memory", "ultra-low", "quick", "test"]

PRESETS: dict[Preset, dict[str, Any]] = {
    "low-memory": {"memory_limit": "least"},
    "ultra-low": {"memory_limit": "least", "max_seq_len": 512},
    "quick": {
        "num_iterations": 100,
        "total_batch_size": 16_384,
        "eval_every": 50,
        "model_tag": "quick",
    },
    "test": {
        "num_iterations": 2,
        "total_batch_size": 8192,
        "eval_tokens": 8192,
        "model_tag": "test",
    },
}
assert tuple(PRESETS) == get_args(Preset)


def options(settings: Mapping[str, Any]) -> str:
    """Settings as one would give them, such as `memory_limit=least` `max_seq_len=512`."""
    return " ".join(f"`{name}={value}`" for name, value in settings.items())


def described() -> str:
    """All presets with what they stand for."""
    return "; ".join(f"{name} is {options(settings)}" for name, settings in PRESETS.items())


LARGEST_DEPTH = 64
DEFAULT_DEPTH = 12  # without a time budget
LARGEST_CONTEXT = 32_768  # tokens; of their square, a mask, MLX needs fewer than 2^31
MAX_CHARACTERS = 2_000_000_000  # that a tokenizer is trained on; nanochat's
WINDOWS = "^[SL]+$"
IN_WORDS = {  # what a pattern asks for
    NAME: "letters, digits, '.', '_' and '-' only, 100 at most",
    WINDOWS: "letters S and L only",
}


class DataConfig(BaseModel):
    """Which data, and which tokenizer."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, title="Data and tokenizer"
    )

    dataset: str = Field(
        DEFAULT_DATASET,
        pattern=NAME,
        description=f"{dataset_names()}, builtin, or a "
        "name given to your own text with `mlxchat data fetch`.",
    )
    data_dir: Path | None = Field(
        None, description="A folder of shards to train on instead; its last one validates."
    )
    num_shards: int | None = Field(None, ge=1, description="Training shards to use. Default: all.")
    streaming: bool = Field(
        False, description="Fetch shards ahead of their use, and drop those used."
    )
    max_cached_shards: int = Field(
        20, ge=2, description="With `streaming`: training shards on disk at most."
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
        description="Tokens of a tokenizer, where one is trained. Default: 65,536, a modern run's "
        "32,768; fewer for little text.",
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


class PretrainConfig(RunConfig, DataConfig):
    """What a pretraining run is told. ``None`` means: derive it; the plan says from what."""

    independent: ClassVar[frozenset[str]] = INDEPENDENT | {
        "data_dir",  # its files are compared
        "tokenizer_dir",  # a run that goes on has its own
        "preset",
        "streaming",
        "max_cached_shards",
        "endpoint",
    }

    model_config = ConfigDict(title="Model and training")

    arch: Architecture = Field(
        "classic", description="classic: nanochat of October 2025; modern: of July 2026."
    )
    depth: int | None = Field(
        None,
        ge=1,
        le=LARGEST_DEPTH,
        json_schema_extra={"none": "auto"},
        description="Layers; the one dial: width is 64 times as much. Default: 12; with `budget`: "
        "auto, the depth that learns most in that time.",
    )
    init_from: str | None = Field(
        None,
        description="Begin with the weights of a model: a run's name, or a model's directory. "
        "Shape and tokenizer are the model's.",
    )
    budget: str | None = Field(
        None,
        description="Time to train in, all in all, such as 90s, 30m, 1h30m or 2d: this machine's "
        "speed is measured, depth, batch and steps are chosen to fit.",
    )
    preset: Preset | None = Field(
        None,
        json_schema_extra={"metavar": "NAME"},
        description=f"A name for other options, which win if given too: {described()}.",
    )
    head_dim: int = Field(
        128, ge=2, description="Width of a head; of a classic one at most, the width is shared out."
    )
    max_seq_len: int = Field(
        2048, ge=2, le=LARGEST_CONTEXT, description="Context length in tokens."
    )
    window_pattern: str | None = Field(
        None,
        pattern=WINDOWS,
        description="Reach of attention by layer, repeated: S a quarter of the context, L all. "
        "Default: SSSL for modern, L for classic.",
    )
    num_iterations: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Optimizer steps. Default: from the data ratio, or the budget.",
    )
    target_param_data_ratio: float | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="Training tokens for each parameter. Default: 20; modern 12, for those of the "
        "matrices and the head. With `depth=auto`, for those of the matrices.",
    )
    total_batch_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Tokens in one optimizer step, gradients accumulated. Default: 524,288; modern "
        "from the data ratio; with `budget` fewer.",
    )
    embedding_lr: float | None = Field(
        None, gt=0, description="Learning rate of the embedding (AdamW). Default: 0.2; modern 0.3."
    )
    unembedding_lr: float | None = Field(
        None, gt=0, description="Learning rate of the head (AdamW). Default: 0.004; modern 0.008."
    )
    matrix_lr: float = Field(0.02, gt=0, description="Learning rate of the matrices (Muon).")
    scalar_lr: float | None = Field(
        None,
        gt=0,
        description="Learning rate of the weights of the embedding that is added to the residual "
        "stream; those of the stream itself take a hundredth (AdamW). Modern only. Default: 0.5. "
        "Smear and backout keep 0.2.",
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Classic: of embedding and head (AdamW). Default: 0. Modern: of the matrices "
        "(Muon), before it is scaled. Default: 0.28.",
    )
    grad_clip: float | None = Field(
        None,
        ge=0,
        description="Largest gradient norm; 0 turns it off. Default: 1; modern 0.",
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps that warm up. Default: 0; modern 40."
    )
    warmdown_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of steps that cool down. Default: 0.2; modern 0.65."
    )
    final_lr_frac: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Last learning rate, as a share of the full one. Default: 0; modern 0.05.",
    )

    @model_validator(mode="before")
    @classmethod
    def _under_a_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if preset in PRESETS else given

    @field_validator("budget")
    @classmethod
    def _one_spelling(cls, budget: str | None) -> str | None:
        return None if budget is None else spell_duration(to_seconds(budget))

    @model_validator(mode="after")
    def _have_an_effect(self) -> "PretrainConfig":
        if self.arch == "classic" and self.scalar_lr is not None:
            raise ConfigError(
                "The classic architecture has no scalars that `scalar_lr` would train.",
                "Leave it out, or use `arch=modern`.",
            )
        if self.arch == "classic" and "S" in (self.window_pattern or ""):
            raise ConfigError(
                "The classic architecture has no short windows: "
                f"`window_pattern={self.window_pattern}`.",
                "Leave it out, or use `arch=modern`.",
            )
        if self.budget and self.num_iterations:
            preset = PRESETS[self.preset] if self.preset else {}
            of = f" (of `preset={self.preset}`)" if "num_iterations" in preset else ""
            raise ConfigError(
                f"A `budget` determines the number of steps: "
                f"`num_iterations={self.num_iterations}`{of} does not go with it.",
                "Leave one of them out.",
            )
        return self

    @property
    def of_preset(self) -> str | None:
        """The options that a preset stands for here; None where there is none."""
        if self.preset is None:
            return None
        preset = PRESETS[self.preset]
        return options(
            {name: preset[name] for name in preset if getattr(self, name) == preset[name]}
        )

    @property
    def budget_seconds(self) -> int | None:
        """The time budget, None where there is none."""
        return to_seconds(self.budget) if self.budget else None

    @property
    def tag(self) -> str:
        """The run's name."""
        if self.init_from is not None:
            return self.model_tag or f"{model_name(self.init_from)}-continued"
        if self.depth is None and self.budget:
            return self.model_tag or f"auto-{self.budget}"
        return self.model_tag or f"d{self.depth or DEFAULT_DEPTH}"

    @property
    def recipe(self) -> Recipe:
        """The architecture's, with what is set here in its place."""
        settings = {name: getattr(self, name, None) for name in Recipe._fields}
        given = {name: value for name, value in settings.items() if value is not None}
        return RECIPES[self.arch]._replace(**given)

    @property
    def evaluation_steps(self) -> int:
        """In a short run, most of the usual ones are better spent on training."""
        return 5 if self.budget else super().evaluation_steps

    @classmethod
    def shown(cls, settings: dict[str, Any], name: str) -> str:
        """A setting, or what stands for it where it is not given."""
        value = settings[name]
        if value is None and name == "depth":
            value = "auto" if settings["budget"] else DEFAULT_DEPTH
        if value is None:
            value = getattr(RECIPES[settings["arch"]], name, None)
        return "not given" if value is None else str(value)
