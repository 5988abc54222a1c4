"""The options of training an adapter, which `train`, `info`, `mid`, `sft` and `rl` share."""

from typing import Annotated, TypeVar, cast

import typer

from mlxchat.config.lora import LoraTraining
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.rl import RlConfig
from mlxchat.config.sft import ConversationConfig
from mlxchat.ui.text import as_options

Lora = Annotated[
    bool,
    typer.Option(
        "--lora",
        help="Train a LoRA adapter and leave the model itself unchanged; the model may "
        "be quantized. This takes less memory and disk space, and you can use the model with or "
        "without the adapter.",
        rich_help_panel="Adapter",
    ),
]
TrainSettings = TypeVar("TrainSettings", bound=PretrainConfig | ConversationConfig | RlConfig)


def with_adapter(config: TrainSettings, lora: bool, adapter: LoraTraining) -> TrainSettings:
    """Return a run's settings with those of the adapter that it trains, if it trains one.

    Args:
        config: the settings; a `dropout` given there is the adapter's.
        lora: whether an adapter is trained.
        adapter: its settings.

    Raises:
        typer.BadParameter: settings of an adapter are given, and none is trained.
        ConfigError: a setting has no effect on an adapter.
    """
    if not lora:
        if adapter.model_fields_set:
            option = as_options(f"`{sorted(adapter.model_fields_set)[0]}`")
            raise typer.BadParameter(
                f"{option} is an adapter setting: use it together with --lora."
            )
        return config
    given = config.model_dump(exclude_unset=True)
    if given.get("dropout") is not None:
        adapter = adapter.model_copy(update={"dropout": given.pop("dropout")})
    return cast(TrainSettings, type(config).model_validate({**given, "lora": adapter}))
