"""What `mlxchat chat` does."""

import sys
from pathlib import Path

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout, store
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import Sampling
from mlxchat.engine.chat import Chat
from mlxchat.errors import NotFound
from mlxchat.home import Home
from mlxchat.ui import repl
from mlxchat.ui.console import console_for, warning


def locate(tag: str | None, step: int | None, checkpoint: Path | None) -> Path:
    """The directory of a saved model."""
    if checkpoint is not None and not checkpoint.is_dir():
        raise NotFound(f"There is no directory {checkpoint}.", "Give a model's directory.")
    if checkpoint is not None:
        checkpoint = store.latest(checkpoint) or checkpoint  # a run's folder means its newest step
    return checkpoint or catalog.find(Home.from_environment().stages, tag, step)


def load(tag: str | None, step: int | None, checkpoint: Path | None) -> tuple[SavedModel, str]:
    """A saved model, and what to call it."""
    folder = locate(tag, step, checkpoint)
    runtime.bound_buffer_cache()
    saved = layout.read_model(folder, runtime.machine().compute_dtype)
    saved.model.ready_to_infer()
    return saved, f"{folder.parent.name}/{folder.name}" if checkpoint is None else str(folder)


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
