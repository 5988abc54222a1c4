"""Settings of CORE during a run. Pure: quick to import."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlxchat.home import expanded

LEAST_PER_TASK = 11  # ten of them are solved examples before the one that counts


class CoreConfig(BaseModel):
    """The settings by which a run measures CORE."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="CORE")

    core_every: int = Field(
        0,
        ge=0,
        description="Steps between evaluations on CORE, nanochat's benchmark for base models; "
        "it also runs after the last step. 0: never. Each takes minutes on a GPU and up to an "
        "hour on a laptop.",
    )
    core_max_per_task: int = Field(
        500,
        ge=LEAST_PER_TASK,
        description="Maximum number of examples per task, of which CORE has 22. nanochat uses "
        "500; fewer are quicker, with a larger error.",
    )
    core_bundle: Path | None = Field(
        None,
        description="CORE's examples: nanochat's eval_bundle.zip, or the folder it was "
        "unpacked into. Default: eval_bundle.zip in $MLXCHAT_HOME, downloaded if it is missing (8 "
        "MB).",
    )

    @field_validator("core_bundle")
    @classmethod
    def _absolute_bundle(cls, path: Path | None) -> Path | None:
        return path and expanded(path).absolute()
