"""What `mlxchat sft` does."""

from mlxchat.cli.session import watch
from mlxchat.config.sft import SftConfig
from mlxchat.home import Home
from mlxchat.train.sft import fine_tune, with_source
from mlxchat.ui.console import say


def sft(config: SftConfig, fresh: bool, json: bool) -> None:
    """Fine-tune a model, showing how it goes."""
    home = Home.from_environment()
    config = with_source(config, home)
    watch(lambda show, meter, stop: fine_tune(config, home, show, meter, stop, fresh), json)
    if not json:
        say(f"Talk to it: mlxchat chat --model-tag {config.tag}")
