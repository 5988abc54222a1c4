"""What `mlxchat import` does."""

import json as json_format
import re
import sys
import time
from pathlib import Path

from mlxchat import runtime
from mlxchat.checkpoint import store
from mlxchat.config.run import NAME_PATTERN
from mlxchat.errors import ConfigError
from mlxchat.home import Home
from mlxchat.interop import importers
from mlxchat.interop.importers import optimizer
from mlxchat.interop.importers.model import Foreign, network
from mlxchat.model.size import parameters
from mlxchat.telemetry.events import Noted, Progressed
from mlxchat.train.resume import new_optimizer
from mlxchat.ui.console import Screen, say


def import_model(
    path: Path,
    step: int | None,
    tag: str | None,
    tokenizer: Path | None,
    softcap: float | None,
    conversational: bool | None,
    with_optimizer: bool,
    json: bool,
) -> None:
    """Save a model of another program as a run, showing how far it is on standard error."""
    home = Home.from_environment()
    foreign = importers.open_model(path, step, tokenizer, softcap, conversational)
    run = _destination(home, foreign, tag)
    optimizer_file = (
        optimizer.find_optimizer(foreign.path, foreign.step, foreign.config)
        if with_optimizer
        else None
    )
    runtime.bound_buffer_cache()
    with Screen(stream=sys.stderr) as screen:
        for note in foreign.notes:
            screen.show(Noted(time.time(), note))

        def report(done: int, total: int) -> None:
            screen.show(Progressed(time.time(), "reading", done, total, "bytes"))

        model, state = network(foreign, report), None
        if optimizer_file:
            expected = {name: array.shape for name, array in new_optimizer(model).state.items()}
            state = optimizer.read_optimizer(optimizer_file, foreign.config, expected)
        folder = importers.save_imported(run, foreign, model, state)
    config = foreign.config
    facts = {
        "path": str(folder),
        "model_tag": run.name,
        "step": foreign.step,
        "program": foreign.program,
        "era": config.era,
        "parameters": sum(parameters(config).values()),
        "softcap": config.softcap,
        "conversational": foreign.conversational,
        "optimizer": state is not None,
    }
    if json:
        say(json_format.dumps(facts))
        return
    kind = "trained on conversations" if foreign.conversational else "a base model"
    say(
        f"{facts['parameters']:,} parameters in {config.n_layer} layers of nanochat's era "
        f"{config.era!r}, {kind}: {folder}"
    )
    say(f"Talk to it: mlxchat chat --model-tag {run.name}")


def _destination(home: Home, foreign: Foreign, tag: str | None) -> Path:
    """The folder of a new run, of the stage that the model has come to.

    Raises:
        MlxchatError: the name is no folder's, or another run's.
    """
    name = tag or foreign.name
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name!a} cannot be the name of a run.", "Name it with --model-tag.")
    if any(store.steps(stage / name) for stage in home.stages):
        raise ConfigError(
            f"There is a run called {name} already: {home.run(name)}.",
            "Name this one with --model-tag.",
        )
    return (home.finetuned if foreign.conversational else home.runs) / name
