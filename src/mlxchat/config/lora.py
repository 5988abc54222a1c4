"""Settings of training an adapter. Pure: quick to import."""

from pydantic import Field

from mlxchat.model.adapter import LoraConfig as LoraConfig

LEARNING_RATE = 0.001


class LoraTraining(LoraConfig):
    """An adapter, and how fast it learns."""

    learning_rate: float = Field(
        LEARNING_RATE,
        gt=0,
        le=10,
        description="Highest learning rate of the adapter, which AdamW trains.",
    )

    @property
    def shape(self) -> LoraConfig:
        """The adapter without what only its training needs."""
        return LoraConfig(**self.model_dump(include=set(LoraConfig.model_fields)))
