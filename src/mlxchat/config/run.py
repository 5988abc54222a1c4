"""Settings that every run has: memory, evaluation, checkpoints, name. Pure: quick to import."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mlxchat.config.units import spell_size, to_bytes
from mlxchat.errors import ConfigError
from mlxchat.names import composed
from mlxchat.telemetry.tracked import TrackerName

LEAST = "least"  # the memory limit that is as small as possible
AUTO: Literal["auto"] = "auto"  # the wired limit that suits the run


class MemoryConfig(BaseModel):
    """The memory to train in. Except for rounding, nothing that is learned depends on it."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Memory")

    memory_limit: str | None = Field(
        None,
        json_schema_extra={"metavar": "SIZE"},
        description="Memory that training may use, such as 12GB, 800MB or 7.5GiB. mlxchat "
        "picks the fastest combination of micro-batch size, gradient checkpointing and loss "
        "chunks that fits. least: the minimum for this model, but not below 512 MB. Default: 90% "
        "of free memory; on a Mac, at most the system's recommendation for the GPU, which is two "
        "thirds of memory or more.",
    )
    grad_checkpoint: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Recompute each layer's activations in the backward pass instead of "
        "storing them: less memory, a third more computation. auto: only if training would not "
        "fit otherwise.",
    )
    device_batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows per micro-batch. Default: of the sizes that fit, the smallest "
        "within 2% of the fastest.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Precision of the activations; weights and optimizer state are float32. "
        "auto: float32 on a CPU; bfloat16 on a GPU, unless its float32 is faster (M1, M2).",
    )
    wired_limit: str | None = Field(
        None,
        json_schema_extra={"metavar": "SIZE"},
        description="Memory that macOS may not swap out, such as 8GB; needs macOS 15. auto: "
        "training's expected memory plus 4 GB, at most the system's recommendation for the GPU. "
        "This can be faster, but all other programs share the rest, and a Mac with too little "
        "left can hang. Default: none.",
    )

    @field_validator("memory_limit", "wired_limit")
    @classmethod
    def _canonical_size(cls, size: str | None, info: ValidationInfo) -> str | None:
        word = {"memory_limit": LEAST, "wired_limit": AUTO}[str(info.field_name)]
        return size if size in (None, word) else spell_size(str(size))

    @property
    def wired(self) -> int | Literal["auto"] | None:
        """The wired limit in bytes, or ``auto``; None to leave the system's."""
        if self.wired_limit is None:
            return None
        return AUTO if self.wired_limit == AUTO else to_bytes(self.wired_limit)


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a run or a dataset, which name folders
NAME_IN_WORDS = (
    "only letters, digits, '.', '_' and '-', at most 100 of them, the first a letter or digit"
)
LARGEST_COUNT = 10**15  # of steps, or of tokens in one
SAMPLINGS = 5  # in a run, by default

# Settings that may change when a run is resumed: what is learned stays the same.
INDEPENDENT = frozenset(
    {
        "memory_limit",
        "grad_checkpoint",
        "device_batch_size",
        "dtype",
        "wired_limit",
        "eval_every",
        "eval_tokens",
        "sample_every",
        "save_every",
        "keep",
        "model_tag",
        "track",
    }
)

# What a tracker may be told of a text: a word, such as the name of a run, or a size. No path and no
# file looks so.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[0-9]+[A-Za-z]*)?")


def is_name(text: str) -> bool:
    """Return whether a text can name a run or a dataset, and so their folders.

    >>> is_name("d12-sft"), is_name("d12\\n"), is_name("../d12")
    (True, False, False)
    """
    return re.fullmatch(NAME_PATTERN, text) is not None


def require_name(name: str, remedy: str) -> str:
    """Return a run's name that was made from something else, such as the name of a folder.

    Raises:
        ConfigError: it cannot name a run; ``remedy`` is the rest of what to do.
    """
    if is_name(name):
        return name
    raise ConfigError(f"{name!a:.120} cannot be the name of a run.", remedy)


def name_after(source: str, suffix: str) -> str:
    """Return the name of a run by default, from that of the model it begins with.

    Args:
        source: the name of the model's run, or the path of its directory.
        suffix: what follows it.

    Raises:
        ConfigError: it cannot name a run.
    """
    path = Path(source)
    model = path.parent.name if path.name.startswith("step_") else path.name
    return require_name(f"{model}{suffix}", f"Name it with `model_tag`: use {NAME_IN_WORDS}.")


class RunConfig(MemoryConfig):
    """The evaluation, samples, checkpoints and name of a run."""

    model_config = ConfigDict(title="Evaluating and saving")

    independent: ClassVar[frozenset[str]] = INDEPENDENT

    eval_every: int = Field(250, ge=0, description="Steps between evaluations; 0: never.")
    eval_tokens: int | None = Field(
        None,
        ge=1,
        description="Validation tokens per evaluation. Default: 20 times the total batch "
        "size, or all of them if there are fewer.",
    )
    sample_every: int | None = Field(
        None,
        ge=0,
        description="Steps between samples of the model's text, two each time; 0: never. Default: "
        "a fifth of the run. More are written after the last step.",
    )
    save_every: int = Field(
        50,
        ge=0,
        description="Steps between checkpoints; 0: save only the last step. If the text is "
        "read more than once, every new best step is saved too.",
    )
    keep: int = Field(
        3, ge=1, description="Number of recent checkpoints to keep, in addition to the best one."
    )
    model_tag: str | None = Field(
        None,
        pattern=NAME_PATTERN,
        json_schema_extra={"metavar": "NAME", "complete": "runs"},
        description="Name of the run. Default: derived from its settings, such as d12, "
        "auto-2h or d12-sft.",
    )

    track: TrackerName | None = Field(
        None,
        description="Also send the run's settings, metrics and samples to an experiment "
        "tracker. docs/tracking.md says exactly what is sent, and where. Each tracker needs the "
        "extra of the same name.",
    )

    @property
    @abstractmethod
    def tag(self) -> str:
        """The run's name.

        Raises:
            ConfigError: the settings do not name it, and the model that it begins with is in a
                folder that no run can be named after.
        """

    def sampling_interval(self, total_steps: int) -> int:
        """Return the steps between samples in a run of so many steps; 0: never."""
        default = -(-total_steps // SAMPLINGS)
        return default if self.sample_every is None else self.sample_every

    @property
    def evaluation_steps(self) -> int:
        """The size of an evaluation by default, in steps' worth of tokens.

        This is classic nanochat's; the modern one evaluates 80 steps of 2^19 tokens.
        """
        return 20

    @property
    def data_name(self) -> str | None:
        """A short name of what the run learns from; None if it has none."""
        return None

    def for_trackers(self) -> dict[str, Any]:
        """Return the settings that say nothing of their user and the machine: no paths, no texts.

        >>> from mlxchat.config.sft import SftConfig
        >>> settings = SftConfig(source="d4", step=None, data=["mine.jsonl"], identity="name=Ada")
        >>> {"source", "data", "identity"} & settings.for_trackers().keys()
        {'source'}
        """
        return _impersonal(self.model_dump())

    @classmethod
    def upgraded(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a saved run as this version of mlxchat writes them."""
        return stored

    @classmethod
    def shown(cls, settings: dict[str, Any], name: str) -> str:
        """Write the value of a setting, or its default if it is not given."""
        value = settings[name]
        if isinstance(value, dict):
            given = {part: of_part for part, of_part in value.items() if of_part is not None}
            return ", ".join(f"{part} {of_part}" for part, of_part in given.items())
        return "not given" if value is None else str(value)

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """List the settings that differ from those of a saved run, each as ``name (then -> now)``.

        Those in ``independent`` may differ, since they do not change what is learned. Spelling out
        a default is no difference. Settings that belong together, as an adapter's do, are compared
        one by one where both runs have them.
        """
        then = type(self)().model_dump(mode="json") | stored
        now = self.model_dump(mode="json")
        both = [name for name in now if isinstance(now[name], dict) and then[name]]
        then, now = (_with_parts_of(both, settings) for settings in (then, now))
        return [
            f"`{name}` ({self.shown(then, name)} -> {self.shown(now, name)})"
            for name in now
            if name not in self.independent
            and then[name] != now[name]
            and composed(self.shown(then, name)) != composed(self.shown(now, name))
        ]


def _with_parts_of(names: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which the parts of some take the place of the whole."""
    whole = {name: value for name, value in settings.items() if name not in names}
    return whole | {part: value for name in names for part, value in settings[name].items()}


def _impersonal(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers, switches and words among settings."""
    inner = {
        name: _impersonal(value) if isinstance(value, dict) else value
        for name, value in settings.items()
    }
    return {
        name: value
        for name, value in inner.items()
        if isinstance(value, int | float | dict)
        or (isinstance(value, str) and _WORD.fullmatch(value))
    }
