"""The command `chat`."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxchat.checkpoint import catalog
from mlxchat.cli.failures import code_of
from mlxchat.cli.options import (
    Checkpoint,
    DtypeOption,
    ModelTag,
    StepNumber,
    model_in_words,
    require_one_place,
)
from mlxchat.config.inference import ChatSettings, Dtype
from mlxchat.errors import MlxchatError, reason_of
from mlxchat.home import Home
from mlxchat.ui import json_chat, repl
from mlxchat.ui.chat_commands import SLASH_COMMANDS, TwoColumns, purposes
from mlxchat.ui.console import say, say_json, warning
from mlxchat.ui.output import LiteralConsole, console_for, is_discarded

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.engine.chat import Chat


def chat_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Answer this prompt and exit.",
            show_default=False,
            metavar="TEXT",
        ),
    ] = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            help="Remember what you type, so that the Up key recalls it in later "
            "chats. It is kept in a file in $MLXCHAT_HOME that only you can read.",
        ),
    ] = True,
    dtype: DtypeOption = "auto",
    json: Annotated[
        bool,
        typer.Option("--json", help="Read and print JSON lines, for use by programs: see above."),
    ] = False,
    *,
    settings: ChatSettings,
) -> None:
    """Talk to a model.

    A model trained on conversations answers; a base model continues your text.

    Enter sends a message. Alt+Enter, or Esc followed by Enter, starts a new line; pasted text is
    one message. Ctrl-C stops an answer and keeps the part already written. /help lists the
    commands: /undo, /regenerate, one for each setting, and more.

    Text piped into the command is sent as one message.

    With --json, each line of standard input is a message, {"content": "Hello"},
    or a command, {"command": "/clear"}. Each gets one line in reply: {"content": "Hi!",
    "calculations": [], "truncated": false, "dropped": 0} to a message, {"notes": [...]} to a
    command, and to an invalid line, which does not end the chat, {"error": {"problem": ...,
    "remedy": ...}}. With --prompt, one line is printed, and the exit code is not 0 if it is an
    error.
    """
    require_one_place(model_tag, step, checkpoint)
    folder = catalog.locate(Home.from_environment().stages, model_tag, step, checkpoint)
    name = model_in_words(folder, checkpoint)
    say(f"Loading {name}.", sys.stderr)
    saved = load_model(folder, dtype)
    if json:
        _talk_to_program(new_chat(saved, settings), prompt)
    else:
        talk(saved, name, settings, prompt, history)


def new_chat(saved: "SavedModel", settings: ChatSettings) -> "Chat":
    """Begin a conversation with a model."""
    from mlxchat.engine.chat import Chat

    return Chat(
        saved.model, saved.tokenizer, conversational=saved.conversational, settings=settings
    )


def talk(
    saved: "SavedModel", name: str, settings: ChatSettings, prompt: str | None, history: bool
) -> None:
    """Answer a prompt or piped input, or else hold a conversation."""
    chat = new_chat(saved, settings)
    console = console_for(sys.stdout)
    if prompt is None and not sys.stdin.isatty():
        piped = _decoded(sys.stdin.buffer.read())
        # A base model continues the blanks, too; the line break that ends a file is not meant.
        prompt = piped.strip() if chat.conversational else re.sub(r"\r?\n\Z", "", piped)
    if prompt is None:
        read, keys = _reader(chat, console, history)
        repl.converse(chat, name, console, read, keys)
    else:
        repl.answer_prompt(chat, prompt, console)


def _reader(
    chat: "Chat", console: LiteralConsole, history: bool
) -> tuple[repl.ReadMessage, TwoColumns]:
    """Return what reads from the terminal, a line editor if it can be one, and its keys."""
    if not console.is_terminal or console.is_dumb_terminal:
        return repl.plain_reader(console), ()
    from mlxchat.ui.line_editor import EDITOR_KEYS, LineEditor, open_history

    kept = Home.from_environment().chat_history if history else None
    try:
        opened = open_history(kept)
    except OSError as error:
        warning(f"What you type will not be remembered: {kept}: {reason_of(error)}.")
        opened = open_history(None)
    with_file = [name for name, command in SLASH_COMMANDS.items() if command.argument == "FILE"]
    return LineEditor(purposes(chat), with_file, opened), EDITOR_KEYS


def _talk_to_program(chat: "Chat", prompt: str | None) -> None:
    """Answer a prompt, or each line of standard input, by a line of JSON."""
    if prompt is not None:
        try:
            say_json(json_chat.answer_object(chat, chat.reply(prompt)))
        except MlxchatError as error:
            say_json(json_chat.error_object(error))
            raise typer.Exit(code_of(error)) from error
        return
    for answer in json_chat.answer_lines(chat, sys.stdin.buffer):
        say_json(answer)
        if is_discarded(sys.stdout):
            return


def _decoded(content: bytes) -> str:
    """Return piped input as text, with a warning if it is not all UTF-8."""
    text = content.decode("utf-8", "replace")
    if text.encode() != content:
        warning(
            "Standard input is not valid UTF-8; the model sees \ufffd in place of invalid bytes."
        )
    return text


def load_chosen(
    tag: str | None, step: int | None, checkpoint: Path | None, dtype: Dtype = "auto"
) -> "tuple[SavedModel, str]":
    """Read a saved model, ready for inference; returns it with a name for it."""
    folder = catalog.locate(Home.from_environment().stages, tag, step, checkpoint)
    return load_model(folder, dtype), model_in_words(folder, checkpoint)


def load_model(folder: Path, dtype: Dtype) -> "SavedModel":
    """Read the model in a directory, ready for inference."""
    from mlxchat.checkpoint import layout

    return layout.load_for_inference(folder, dtype)
