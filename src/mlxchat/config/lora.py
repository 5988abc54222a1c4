"""Settings of training an adapter. Pure: quick to import."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlxchat.errors import ConfigError
from mlxchat.model.adapter import LoraConfig as LoraConfig

LEARNING_RATE = 0.001  # measured by benchmarks/adapters.py; docs/adapters.md has the figures


class LoraTraining(LoraConfig):
    """An adapter, and how fast it learns."""

    model_config = ConfigDict(title="Adapter")

    learning_rate: float = Field(
        LEARNING_RATE,
        gt=0,
        le=10,
        description="Peak AdamW learning rate of the adapter. On quickstart's model, 0.001 to "
        "0.003 do about equally well and 0.01 diverges.",
    )

    @property
    def shape(self) -> LoraConfig:
        """The adapter without what only its training needs."""
        return LoraConfig(**self.model_dump(include=set(LoraConfig.model_fields)))


class AdapterRun(BaseModel):
    """A run that trains all of a model, or only an adapter on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: LoraTraining | None = Field(
        None,
        description="Train an adapter and leave the model itself unchanged; the model may be "
        "quantized. Pass True, or the adapter's settings. Default: train the whole model.",
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _from_word(cls, lora: object) -> object:
        return {True: {}, False: None}[lora] if isinstance(lora, bool) else lora

    def require_effect(self, *without: str) -> None:
        """Check that no setting differs from its default that has no effect on an adapter.

        Args:
            without: the settings that have none.

        Raises:
            ConfigError: one does.
        """
        fields = type(self).model_fields
        changed = [name for name in without if getattr(self, name) != fields[name].default]
        for name in changed if self.lora is not None else ():
            raise ConfigError(
                f"`{name}` has no effect with `lora`, which trains only an adapter.",
                "Leave one of them out. An adapter has its own `learning_rate` and `dropout`.",
            )
