"""The command `serve`."""

import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import typer

from mlxchat.checkpoint import catalog
from mlxchat.cli.chat import load_chosen
from mlxchat.cli.options import (
    Checkpoint,
    DtypeOption,
    ModelTag,
    StepNumber,
    require_one_place,
)
from mlxchat.cli.session import Interrupts, exit_promptly
from mlxchat.config.inference import Sampling
from mlxchat.config.serve import ServeConfig
from mlxchat.home import Home
from mlxchat.ui.console import say, warning
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.serve.server import ServedModel, Server

LOOK_SECONDS = 1.0  # between looks whether the server still runs


def serve_command(
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    dtype: DtypeOption = "auto",
    *,
    config: ServeConfig,
    sampling: Sampling,
) -> None:
    """Serve a model to programs that speak OpenAI's API, and to your browser.

    Clients need the address that is printed, as base_url, and any key. The
    options of sampling count where a request does not say. Each request is a
    line on standard error, without its text.

    Ctrl-C or SIGTERM ends the server when the answers under way are finished,
    after at most 30 seconds; Ctrl-C again ends it at once.
    """
    require_one_place(model_tag, step, checkpoint)
    from mlxchat.checkpoint.history import tag_and_step
    from mlxchat.serve.server import ServedModel, bind, start, thread_died

    asked = threading.Event()
    with closing(
        bind(config)
    ) as bound:  # a port that is taken is an error before the model is read
        with exit_promptly():
            folder = catalog.locate(Home.from_environment().stages, model_tag, step, checkpoint)
            saved, described = load_chosen(model_tag, step, checkpoint, dtype)
        model = ServedModel(
            name=tag_and_step(folder)[0],
            tokenizer=saved.tokenizer,
            context=saved.model.config.sequence_len,
            conversational=saved.conversational,
            sampling=sampling,
            system=config.system,
        )
        with (
            Interrupts(asked.set) as interrupts,
            start(
                saved.model, [model], config, bound, lambda line: say(line, sys.stderr)
            ) as server,
        ):
            _announce(server, model, described, config)
            while server.running and not asked.wait(LOOK_SECONDS):
                pass
            if asked.is_set():
                say(_ending(server.stats.running), sys.stderr)
    if interrupts.requested():
        raise typer.Exit(interrupts.exit_code)
    raise thread_died()


def _announce(server: "Server", model: "ServedModel", described: str, config: ServeConfig) -> None:
    say(f"Serving {described}, called {model.name}. For OpenAI's clients: base_url {server.url}")
    if not model.conversational:
        say("It is a base model: it continues text (/v1/completions) and does not answer.")
    if not config.loopback:
        say("Other machines reach it by the name or an address of this one.")
    if config.insecure and not (config.loopback or config.api_key):
        warning("There is no key: whoever reaches this machine can use the model.")
    say("Ctrl-C ends the server.")


def _ending(running: int) -> str:
    if not running:
        return "Ending."
    from mlxchat.serve.server import FINISHING_SECONDS

    return (
        f"Finishing {amount(running, 'answers')}, for at most {FINISHING_SECONDS:g} seconds. "
        "Ctrl-C again ends at once."
    )
