"""The command `serve`."""

import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
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
from mlxchat.cli.session import Interrupts, exit_promptly
from mlxchat.config.inference import Sampling
from mlxchat.config.serve import ServeConfig
from mlxchat.errors import CheckpointError, ConfigError, command
from mlxchat.home import Home
from mlxchat.ui.console import say, warning
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.serve.server import ServedModel, Server

POLL_SECONDS = 1.0  # between looks whether the server still runs
_HOW_TO_CALL_IT = "Write `adapter=RUN`, or `adapter=NAME=RUN` to choose what clients call it."


def serve_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]RUN",
            help="Run of an adapter to serve along with its base model. A request uses "
            "it by giving its name as the model. Repeat for several. If you name no model, the "
            "base model of the first adapter is served.",
            show_default=False,
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    *,
    config: ServeConfig,
    sampling: Sampling,
) -> None:
    """Serve a model through an OpenAI-compatible API, with a chat page for your browser.

    Give clients the printed address as base_url, and any text as the key unless you set one. The
    sampling options are defaults for requests that set none. Each request is logged as one line on
    standard error, without its text.

    Several adapters of one base model can be served together. Its weights are loaded once, and each
    request picks an adapter by its model name.

    Ctrl-C or SIGTERM stops the server once the current answers are finished, or after 30 seconds; a
    second Ctrl-C stops it at once.
    """
    require_one_place(model_tag, step, checkpoint)
    from mlxchat.checkpoint.history import tag_and_step
    from mlxchat.serve.server import bind, start, thread_died

    asked = threading.Event()
    with closing(
        bind(config)
    ) as bound:  # a port that is taken is an error before the model is read
        with exit_promptly():
            home = Home.from_environment()
            folders = _adapters(home, adapter or ())
            if folders and (model_tag, step, checkpoint) == (None, None, None):
                folder = _base_of(folders)
            else:
                folder = catalog.locate(home.stages, model_tag, step, checkpoint)
            name = tag_and_step(folder)[0]
            _require_belong(folders, folder, name)
            saved, adapted = _loaded(folder, folders, dtype)
        models = _served_models(name, saved, adapted, sampling, config.system)
        log = partial(say, stream=sys.stderr)
        networks = {called: each.model for called, each in adapted.items()}
        with (
            Interrupts(asked.set) as interrupts,
            start(saved.model, models, config, bound, log, networks) as server,
        ):
            _announce(server, models, model_in_words(folder, checkpoint), config)
            while server.running and not asked.wait(POLL_SECONDS):
                pass
            if asked.is_set():
                say(_ending(server.stats.running), sys.stderr)
    if interrupts.requested():
        raise typer.Exit(interrupts.exit_code)
    raise thread_died()


def _served_models(
    name: str,
    saved: "SavedModel",
    adapted: "dict[str, SavedModel]",
    sampling: Sampling,
    system: str | None,
) -> "list[ServedModel]":
    """Return what the server knows of a model and of the adapters on it, by their names."""
    from mlxchat.serve.prompts import ServedModel

    return [
        ServedModel(
            name=called,
            tokenizer=each.tokenizer,
            context=each.model.config.sequence_len,
            conversational=each.conversational,
            sampling=sampling,
            system=system,
            adapter=called if called in adapted else None,
        )
        for called, each in {name: saved, **adapted}.items()
    ]


def _loaded(
    folder: Path, folders: dict[str, Path], dtype: str
) -> "tuple[SavedModel, dict[str, SavedModel]]":
    """Read a model and the adapters on it, ready for inference."""
    from mlxchat.checkpoint import layout
    from mlxchat.runtime import bound_buffer_cache, compute_dtype

    if not folders:
        return layout.load_for_inference(folder, dtype), {}
    bound_buffer_cache()
    saved = layout.read_model(folder, compute_dtype(dtype))
    return saved, layout.load_adapters_for_inference(saved, folders)


def _adapters(home: Home, given: Sequence[str]) -> dict[str, Path]:
    """Return the directories of adapters by the names that clients call them.

    Args:
        home: where runs are.
        given: the names of runs or directories, each perhaps after a name and ``=``.

    Raises:
        ConfigError: a name or a run is missing beside ``=``, or two adapters are called the same.
        CheckpointError: a run has no adapter.
    """
    from mlxchat.checkpoint.bases import is_adapter
    from mlxchat.checkpoint.history import tag_and_step

    folders: dict[str, Path] = {}
    for text in given:
        # The first = ends the name: a directory may have others.
        called, source = text.split("=", 1) if "=" in text else (None, text)
        if not source or called == "":
            raise ConfigError(f"`adapter={text}` is missing a name or a run.", _HOW_TO_CALL_IT)
        folder = catalog.find_model(home.stages, source, None)
        tag = tag_and_step(folder)[0]
        if not is_adapter(folder):
            raise CheckpointError(
                f"{folder} holds a whole model, not an adapter.",
                f"Serve it on its own: {command('serve', model_tag=tag)}",
            )
        if (name := called or tag) in folders:
            raise _same_name_error(name)
        folders[name] = folder
    return folders


def _base_of(folders: dict[str, Path]) -> Path:
    """Return the directory of the model that the first of these adapters was trained on."""
    from mlxchat.checkpoint.bases import require_base

    return require_base(next(iter(folders.values())))


def _require_belong(folders: dict[str, Path], base: Path, name: str) -> None:
    """Check that adapters were trained on a model, and are called otherwise than it."""
    from mlxchat.checkpoint.bases import read_base_record
    from mlxchat.checkpoint.history import record_of_base

    if name in folders:
        raise _same_name_error(name)
    weights = record_of_base(base).weights if folders else {}
    for folder in folders.values():
        record = read_base_record(folder)
        if record.weights != weights:
            raise CheckpointError(
                f"{folder} is an adapter of {record.run}, step {record.step:,}, not of {base}.",
                "A server can only serve adapters of one base model. Start another server for the "
                "others.",
            )


def _same_name_error(name: str) -> ConfigError:
    return ConfigError(f"Two of these models are called {name}.", _HOW_TO_CALL_IT)


def _announce(
    server: "Server", models: "Sequence[ServedModel]", described: str, config: ServeConfig
) -> None:
    first, *others = models
    say(f"Serving {described}, called {first.name}.")
    say(f"The base_url for OpenAI's clients: {server.url}")
    say(f"A page to talk to it: {server.page_url}")
    if not first.conversational:
        say("It is a base model: it continues text (/v1/completions) and does not answer.")
    if others:
        say(f"Adapters, each available as a model: {', '.join(each.name for each in others)}.")
    if not config.loopback:
        say("Other machines can connect to it under this machine's name or address.")
    if config.insecure and not (config.loopback or config.api_key):
        warning("No API key is set: anyone who can reach this machine can use the model.")
    say("Press Ctrl-C to stop the server.")


def _ending(running: int) -> str:
    if not running:
        return "Ending."
    from mlxchat.serve.server import FINISHING_SECONDS

    return (
        f"Finishing {amount(running, 'answers')}, for at most {FINISHING_SECONDS:g} seconds. "
        "Press Ctrl-C again to stop at once."
    )
