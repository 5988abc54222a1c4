"""The command `chat`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxchat.checkpoint import catalog
from mlxchat.cli.options import (
    Checkpoint,
    DtypeOption,
    ModelTag,
    StepNumber,
    model_in_words,
    require_one_place,
)
from mlxchat.config.inference import ChatSettings, Dtype
from mlxchat.home import Home
from mlxchat.ui import repl
from mlxchat.ui.console import say, warning
from mlxchat.ui.output import console_for

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel


def chat_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Answer this prompt and exit.", show_default=False),
    ] = None,
    dtype: DtypeOption = "auto",
    *,
    settings: ChatSettings,
) -> None:
    """Talk to a model.

    A model trained on conversations answers; a base model continues your text.

    Text piped into the command is taken as one message. For a single message, the name of
    the model goes to standard error.
    """
    require_one_place(model_tag, step, checkpoint)
    saved, name = load_chosen(model_tag, step, checkpoint, dtype)
    talk(saved, name, settings, prompt)


def talk(saved: "SavedModel", name: str, settings: ChatSettings, prompt: str | None) -> None:
    """Answer a prompt or piped input, or else hold a conversation."""
    from mlxchat.engine.chat import Chat

    chat = Chat(
        saved.model, saved.tokenizer, conversational=saved.conversational, settings=settings
    )
    console = console_for(sys.stdout)
    if prompt is None and not sys.stdin.isatty():
        prompt = _decoded(sys.stdin.buffer.read()).strip()
    if prompt is None:
        repl.converse(chat, name, console)
    else:
        say(f"The model: {name}.", sys.stderr)
        repl.answer_prompt(chat, prompt, console)


def _decoded(content: bytes) -> str:
    """Return piped input as text, with a warning if it is not all UTF-8."""
    text = content.decode("utf-8", "replace")
    if text.encode() != content:
        warning("Standard input is not all UTF-8; the model sees \ufffd in place of other bytes.")
    return text


def load_chosen(
    tag: str | None, step: int | None, checkpoint: Path | None, dtype: Dtype = "auto"
) -> "tuple[SavedModel, str]":
    """Read a saved model, ready for inference; returns it with a name for it."""
    from mlxchat.checkpoint import layout

    folder = catalog.locate(Home.from_environment().stages, tag, step, checkpoint)
    return layout.load_for_inference(folder, dtype), model_in_words(folder, checkpoint)
