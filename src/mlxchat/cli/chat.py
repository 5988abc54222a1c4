"""What `mlxchat chat` does."""

import sys
from pathlib import Path

from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import Sampling
from mlxchat.engine.chat import Chat
from mlxchat.home import Home
from mlxchat.ui import repl
from mlxchat.ui.console import console_for, warning


def load(tag: str | None, step: int | None, checkpoint: Path | None) -> tuple[SavedModel, str]:
    """Read a saved model; returns it with a name for it."""
    folder = catalog.locate(Home.from_environment().stages, tag, step, checkpoint)
    name = f"{folder.parent.name}/{folder.name}" if checkpoint is None else str(folder)
    return layout.load(folder), name


def talk(
    saved: SavedModel,
    name: str,
    sampling: Sampling,
    seed: int,
    max_tokens: int,
    prompt: str | None,
) -> None:
    """Answer one prompt, what is piped in, or hold a conversation."""
    chat = Chat(
        saved.model,
        saved.tokenizer,
        conversational=saved.conversational,
        sampling=sampling,
        seed=seed,
        max_tokens=max_tokens,
    )
    console = console_for(sys.stdout)
    if prompt is None and not sys.stdin.isatty():
        prompt = _text(sys.stdin.buffer.read()).strip()
    if prompt is None:
        repl.converse(chat, name, console)
    else:
        repl.answer(chat, prompt, console)


def _text(content: bytes) -> str:
    """What was piped in; said where it is not all text."""
    text = content.decode("utf-8", "replace")
    if text.encode() != content:
        warning("Standard input is not all UTF-8 text; the model sees \ufffd for what is not.")
    return text
