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
        description="Model to train further: the name of a run, or a model directory. "
        "Default: the most recently saved base model.",
    )
    init_lr_frac: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Initial learning rates as a fraction of pretraining's (for a modern "
        "model, before scaling by batch size).",
    )
    warmdown_ratio: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Cool-down: fraction of the steps over which the learning rate decays.",
    )
    eval_every: int = Field(150, ge=0, description="Steps between evaluations; 0: never.")
