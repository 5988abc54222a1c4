"""How the next token is chosen, as numbers; kept apart from arrays so that ``--help`` is quick."""

from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """The choice of the next token. The filters apply in the order of the fields, penalty first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="Sampling")

    temperature: float = Field(
        0.6, ge=0, description="Divides the logits: 0 takes the likeliest token, 1 samples as is."
    )
    top_k: int | None = Field(
        50, ge=1, description="Keep this many of the likeliest tokens; a large number keeps all."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Keep the fewest tokens whose probabilities reach this sum."
    )
    min_p: float = Field(
        0.0, ge=0, lt=1, description="Keep tokens with this share of the likeliest's probability."
    )
    repetition_penalty: float = Field(
        1.0, ge=1, description="Makes tokens that occurred before less likely; 1 leaves them alone."
    )
