"""What `mlxchat train` and `tokenizer train` do."""

import json as json_format
from contextlib import closing

from mlxchat.cli.session import ending_soon, watch
from mlxchat.config.pretrain import DataConfig, PretrainConfig
from mlxchat.home import Home
from mlxchat.train import inputs
from mlxchat.train.pretrain import pretrain
from mlxchat.ui.console import Screen, say


def train_tokenizer(config: DataConfig, max_chars: int, json: bool) -> None:
    """Train a tokenizer on a dataset."""
    home = Home.from_environment()
    folder = inputs.tokenizer_folder(config, home)
    with (
        ending_soon(),
        Screen(json) as screen,
        closing(inputs.open_documents(config, home, screen.show)) as documents,
    ):
        tokenizer = inputs.train_tokenizer(
            documents, folder, config.vocab_size, screen.show, max_characters=max_chars
        )
    if json:
        say(json_format.dumps({"vocab_size": tokenizer.vocab_size, "folder": str(folder)}))
    else:
        say(f"A tokenizer of {tokenizer.vocab_size:,} tokens is in {folder}.")


def train(config: PretrainConfig, fresh: bool, json: bool) -> None:
    """Pretrain a model, showing how it goes."""
    home = Home.from_environment()
    watch(lambda show, meter, stop: pretrain(config, home, show, meter, stop, fresh), json)
    if not json:
        say(f"Talk to it: mlxchat chat --model-tag {config.tag}")
