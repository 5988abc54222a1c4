"""Settings of mid-training. Pure: quick to import."""

from pydantic import Field

from mlxchat.config.sft import ConversationConfig


class MidConfig(ConversationConfig):
    """Settings of a mid-training run.

    The defaults are nanochat's (mid_train at commit dfc8833), for both architectures.
    """

    suffix = "mid"

    source: str | None = Field(
        None,
        json_schema_extra={"metavar": "MODEL", "complete": "runs"},
        description="Model to train further: the name of a run, or a model directory. Default: "
        "the base model saved last.",
    )
    init_lr_frac: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Learning rates as a share of those of pretraining (for a modern model, "
        "before scaling by the batch).",
    )
    warmdown_ratio: float = Field(
        0.2, ge=0, le=1, description="Share of the steps over which the learning rate falls."
    )
    eval_every: int = Field(150, ge=0, description="Steps between evaluations; 0: never.")
