"""Settings of pretraining, and presets that stand for several of them. Pure: quick to import."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from mlxchat.config.core import CoreConfig
from mlxchat.config.lora import AdapterRun
from mlxchat.config.recipes import RECIPES, Recipe, RecipeName, recipe_for
from mlxchat.config.run import (
    INDEPENDENT,
    LARGEST_COUNT,
    NAME_IN_WORDS,
    NAME_PATTERN,
    RunConfig,
    name_after,
)
from mlxchat.config.units import spell_duration, to_seconds
from mlxchat.data.addresses import without_credentials
from mlxchat.data.chats.sources import BUILTIN
from mlxchat.data.shards import dataset_names
from mlxchat.errors import ConfigError
from mlxchat.home import DEFAULT_DATASET, expanded
from mlxchat.model.config import Architecture

Preset = Literal["low-memory", "ultra-low", "quick", "test"]

PRESETS: dict[Preset, dict[str, Any]] = {
    "low-memory": {"memory_limit": "least"},
    "ultra-low": {"memory_limit": "least", "max_seq_len": 512},
    "quick": {"budget": "5m", "model_tag": "quick"},
    "test": {
        "num_iterations": 2,
        "total_batch_size": 8192,
        "eval_tokens": 8192,
        "model_tag": "test",
    },
}
assert tuple(PRESETS) == get_args(Preset)


def as_settings(settings: Mapping[str, Any]) -> str:
    """Write settings as messages name them, such as `memory_limit=least` `max_seq_len=512`."""
    return " ".join(f"`{name}={value}`" for name, value in settings.items())


def describe_presets() -> str:
    """List all presets with the settings that they stand for."""
    return "; ".join(f"{name} is {as_settings(settings)}" for name, settings in PRESETS.items())


LARGEST_DEPTH = 64
DEFAULT_DEPTH = 12  # without a time budget
LARGEST_CONTEXT = 32_768  # tokens; the mask, their square, must have fewer than 2^31 elements
MAX_CHARACTERS = 2_000_000_000  # to train a tokenizer on; nanochat's
WINDOW_LETTERS = "^[SL]+$"
IN_WORDS = {  # what each pattern allows
    NAME_PATTERN: NAME_IN_WORDS,
    WINDOW_LETTERS: "only the letters S and L",
}


class DataConfig(BaseModel):
    """The data and the tokenizer."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, title="Data and tokenizer"
    )

    dataset: str = Field(
        DEFAULT_DATASET,
        pattern=NAME_PATTERN,
        json_schema_extra={"metavar": "NAME", "complete": "datasets"},
        description=f"{dataset_names()}, builtin, or the name you gave your own text in "
        "`mlxchat data fetch`.",
    )
    data_dir: Path | None = Field(
        None,
        description="Train on this folder of shards instead of a dataset; the last shard is "
        "used for validation.",
    )
    num_shards: int | None = Field(
        None, ge=1, description="Number of training shards to use. Default: all."
    )
    streaming: bool = Field(
        False, description="Download each shard just before it is needed, and delete it after use."
    )
    max_cached_shards: int = Field(
        20, ge=2, description="With `streaming`: maximum number of training shards on disk."
    )
    endpoint: str | None = Field(
        None,
        repr=False,
        description="URL of the hub to download from. Credentials in it are not saved. "
        "Default: $HF_ENDPOINT, or https://huggingface.co.",
        json_schema_extra={"metavar": "URL"},
    )
    tokenizer_dir: Path | None = Field(
        None, description="Folder of the tokenizer. Default: a folder in $MLXCHAT_HOME."
    )
    vocab_size: int | None = Field(
        None,
        ge=265,
        le=1_000_000,
        description="Vocabulary size, if a new tokenizer is trained. Default: 65,536; modern "
        "32,768; smaller if there is little text.",
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Random seed for the initial weights, the built-in corpus, and the order "
        "of documents after the first epoch.",
    )

    @field_validator("data_dir", "tokenizer_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and expanded(path).absolute()

    @field_serializer("endpoint", when_used="json")
    def _without_credentials(self, endpoint: str | None) -> str | None:
        return endpoint and without_credentials(endpoint)

    @property
    def is_builtin(self) -> bool:
        """Whether the data is the built-in corpus."""
        return self.dataset == BUILTIN and self.data_dir is None


class PretrainConfig(AdapterRun, RunConfig, CoreConfig, DataConfig):
    """Settings of a pretraining run. The plan derives those that are ``None``."""

    independent: ClassVar[frozenset[str]] = INDEPENDENT | {
        "data_dir",  # the files themselves are compared
        "tokenizer_dir",  # a saved run has its own tokenizer
        "preset",
        "streaming",
        "max_cached_shards",
        "endpoint",
        *CoreConfig.model_fields,
    }

    model_config = ConfigDict(title="Model and training")

    recipe: RecipeName | None = Field(
        None,
        description="Set of defaults for the options below. classic: nanochat's as of October "
        "2025; modern: nanochat's as of July 2026; budget: what learns most in the given time. "
        "Default: budget with `budget`, otherwise the one named like `arch`.",
    )
    arch: Architecture | None = Field(
        None,
        description="Architecture. classic: nanochat's as of October 2025; modern: nanochat's "
        "as of July 2026. Default: the recipe's, or classic.",
    )
    depth: int | None = Field(
        None,
        ge=1,
        le=LARGEST_DEPTH,
        json_schema_extra={"none": "auto"},
        description="Number of layers, which determines the model's size: its width is 64 "
        "times the depth. Default: 12; with `budget`: auto, the depth that learns most in that "
        "time.",
    )
    init_from: str | None = Field(
        None,
        json_schema_extra={"metavar": "MODEL", "complete": "runs"},
        description="Start from the weights of this model: the name of a run, or a model "
        "directory. The new run has the same shape and tokenizer.",
    )
    budget: str | None = Field(
        None,
        json_schema_extra={"metavar": "TIME"},
        description="Total training time, such as 90s, 30m, 1h30m or 2d. mlxchat measures "
        "this machine's speed, and chooses the model, the batch size and the number of steps to "
        "fit.",
    )
    preset: Preset | None = Field(
        None,
        json_schema_extra={"metavar": "NAME"},
        description="Shorthand for a group of options; any of them that you also give takes "
        f"precedence. {describe_presets()}.",
    )
    head_dim: int = Field(
        128, ge=2, description="Width of an attention head (an upper bound for classic models)."
    )
    max_seq_len: int = Field(
        2048,
        ge=2,
        le=LARGEST_CONTEXT,
        description="Context length in tokens. With `recipe=budget`, short runs use less.",
    )
    window_pattern: str | None = Field(
        None,
        pattern=WINDOW_LETTERS,
        description="Attention window per layer, repeated over the layers: S is a quarter of "
        "the context, L all of it. Default: SSSL for modern; L for classic and budget.",
        json_schema_extra={"metavar": "PATTERN"},
    )
    num_iterations: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Number of optimizer steps. Default: derived from the data ratio or the "
        "budget.",
    )
    target_param_data_ratio: float | None = Field(
        None,
        ge=1e-3,
        le=1e6,
        description="Training tokens per parameter. Default: 20; modern 12, counting only the "
        "matrices and the head; budget 1 to 12. With `depth=auto`, only the matrices count.",
    )
    total_batch_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Tokens per optimizer step, summed over accumulated micro-batches. "
        "Default: 524,288; modern: derived from the data ratio; smaller with `budget`.",
    )
    eval_tokens: int | None = Field(
        None,
        ge=1,
        description="Validation tokens per evaluation. Default: 20 times the total batch size "
        "(5 times with `budget`), or all of them if there are fewer.",
    )
    embedding_lr: float | None = Field(
        None, gt=0, description="AdamW learning rate of the embedding. Default: 0.2; modern 0.3."
    )
    unembedding_lr: float | None = Field(
        None, gt=0, description="AdamW learning rate of the head. Default: 0.004; modern 0.008."
    )
    matrix_lr: float = Field(0.02, gt=0, description="Muon learning rate of the matrices.")
    scalar_lr: float | None = Field(
        None,
        gt=0,
        description="AdamW learning rate of x0_lambdas; resid_lambdas use 1/100 of it. Modern "
        "only. Default: 0.5. Smear and backout always use 0.2.",
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Classic: AdamW weight decay of embedding and head, default 0. Modern: Muon "
        "weight decay of the matrices before scaling, default 0.28; budget 0.1, not scaled.",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout probability; with `lora`, of the adapter's inputs. Default: 0; "
        "budget up to 0.3 when the text is read more than 3 times.",
    )
    grad_clip: float | None = Field(
        None,
        ge=0,
        description="Maximum gradient norm; 0 disables clipping. Default: 1; modern 0.",
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Warm-up: steps over which the learning rate rises. Default: 0; modern "
        "40; budget 20.",
    )
    warmdown_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Cool-down: fraction of the steps over which the learning rate decays. "
        "Default: 0.2; modern and budget 0.65.",
    )
    final_lr_frac: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Final learning rate as a fraction of the peak. Default: 0; modern 0.05.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        for name, settings in PRESETS.items():
            if name == preset:
                return {**settings, **given}
        return given

    @field_validator("budget")
    @classmethod
    def _canonical_budget(cls, budget: str | None) -> str | None:
        return None if budget is None else spell_duration(to_seconds(budget))

    @model_validator(mode="after")
    def _require_effect(self) -> "PretrainConfig":
        if self.recipe == "budget" and not self.budget:
            raise ConfigError(
                "`recipe=budget` needs a time budget, and none is given.",
                "Give a `budget`, such as `budget=1h`, or use another `recipe`.",
            )
        if self.recipe in ("classic", "modern") and self.arch not in (None, self.recipe):
            raise ConfigError(
                f"`recipe={self.recipe}` cannot be combined with `arch={self.arch}`.",
                "Leave one of them out.",
            )
        if self.architecture == "classic" and self.scalar_lr is not None:
            raise ConfigError(
                "The classic architecture has no scalars for `scalar_lr` to train.",
                "Leave it out, or use `arch=modern`.",
            )
        if self.architecture == "classic" and "S" in (self.window_pattern or ""):
            raise ConfigError(
                "The classic architecture does not support short windows: "
                f"`window_pattern={self.window_pattern}`.",
                "Leave it out, or use `arch=modern`.",
            )
        if self.budget and self.num_iterations:
            preset = PRESETS[self.preset] if self.preset else {}
            of = dict.fromkeys(preset, f" (from `preset={self.preset}`)")
            raise ConfigError(
                f"`budget={self.budget}`{of.get('budget', '')} determines the number of steps: "
                f"`num_iterations={self.num_iterations}`{of.get('num_iterations', '')} cannot be "
                "given as well.",
                "Leave one of them out.",
            )
        if self.lora and self.init_from is None:
            raise ConfigError(
                "`lora` trains an adapter on an existing model, and none is named.",
                "Name the model with `init_from`.",
            )
        self.require_effect(
            "budget",
            "embedding_lr",
            "unembedding_lr",
            "matrix_lr",
            "scalar_lr",
            "weight_decay",
            "dropout",
        )
        return self

    @property
    def of_preset(self) -> str | None:
        """The settings that the preset provides here; None if there is no preset."""
        if self.preset is None:
            return None
        preset = PRESETS[self.preset]
        return as_settings(
            {name: preset[name] for name in preset if getattr(self, name) == preset[name]}
        )

    @property
    def budget_seconds(self) -> int | None:
        """The time budget; None if there is none."""
        return to_seconds(self.budget) if self.budget else None

    @property
    def tag(self) -> str:
        """The run's name."""
        if self.init_from is not None:
            suffix = "-continued-lora" if self.lora else "-continued"
            return self.model_tag or name_after(self.init_from, suffix)
        if self.depth is None and self.budget:
            return self.model_tag or f"auto-{self.budget}"
        return self.model_tag or f"d{self.depth or DEFAULT_DEPTH}"

    @property
    def data_name(self) -> str | None:
        """The dataset, given or not."""
        return self.dataset

    @property
    def recipe_name(self) -> RecipeName:
        """The name of the recipe, given or not."""
        return _recipe_name(self.recipe, self.arch, self.budget)

    @property
    def architecture(self) -> Architecture:
        """The architecture, given or the recipe's."""
        return self.numbers.arch

    @property
    def numbers(self) -> Recipe:
        """The recipe's numbers, with the values that the settings give instead."""
        settings = {name: getattr(self, name, None) for name in Recipe._fields}
        given = {name: value for name, value in settings.items() if value is not None}
        return _numbers(self.recipe, self.arch, self.budget)._replace(**given)

    @property
    def evaluation_steps(self) -> int:
        """The size of an evaluation by default, in steps: small if time is limited by a budget."""
        return 5 if self.budget else super().evaluation_steps

    @classmethod
    def upgraded(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Name the recipe, which was the architecture's before there was one for budgets."""
        return {"recipe": stored.get("arch"), **stored}

    @classmethod
    def shown(cls, settings: dict[str, Any], name: str) -> str:
        """Write the value of a setting, or its default if it is not given."""
        value = settings[name]
        if value is None and name == "depth":
            value = "auto" if settings["budget"] else DEFAULT_DEPTH
        what = settings["recipe"], settings["arch"], settings["budget"]
        if value is None and name == "recipe":
            value = _recipe_name(*what)
        if value is None:
            value = getattr(_numbers(*what), name, None)
        return super().shown(settings | {name: value}, name)


def _recipe_name(
    recipe: RecipeName | None, arch: Architecture | None, budget: str | None
) -> RecipeName:
    return recipe or ("budget" if budget else arch or "classic")


def _numbers(recipe: RecipeName | None, arch: Architecture | None, budget: str | None) -> Recipe:
    name = _recipe_name(recipe, arch, budget)
    return recipe_for(name, arch or RECIPES[name].arch)
