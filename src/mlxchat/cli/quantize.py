"""What `mlxchat quantize` does."""

import json as json_format
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from mlxchat import runtime
from mlxchat.checkpoint import catalog, layout
from mlxchat.checkpoint.layout import SavedModel, model_files
from mlxchat.data.documents import Documents
from mlxchat.errors import CheckpointError, MlxchatError
from mlxchat.home import Home
from mlxchat.model.quantization import Quantization
from mlxchat.quantize import Part, destination, evaluate, quantize, save
from mlxchat.telemetry.events import Evaluated, Evaluating, Noted, Progressed
from mlxchat.train.stage import history_of, read_trainer, stage_of
from mlxchat.ui.console import Screen, say, table
from mlxchat.ui.text import amount


def quantize_saved(
    tag: str | None,
    step: int | None,
    checkpoint: Path | None,
    quantization: Quantization,
    eval_tokens: int,
    json: bool,
) -> None:
    """Save a quantized copy of a model, and tell what became of its size and of what it knows.

    How far it is goes to standard error.
    """
    home = Home.from_environment()
    source = catalog.locate(home.stages, tag, step, checkpoint)
    stage = source.resolve().parent.parent
    runs = stage if stage in home.stages else home.runs
    run, number = destination(runs, source, quantization)
    formats = quantization.formats(layout.read_config(source))
    runtime.bound_buffer_cache()
    past = history_of(source, home)
    saved = layout.read_model(source, runtime.machine().compute_dtype)
    with (
        Screen(stream=sys.stderr) as screen,
        _validation(source, home, screen, eval_tokens) as documents,
    ):
        before = _bits(saved, documents, "before", eval_tokens, screen)
        parts = quantize(saved.model, formats)
        folder = save(run, number, saved, past)
        after = before and _bits(saved, documents, "after", eval_tokens, screen)
    facts = {
        "source": str(source),
        "path": str(folder),
        "bytes_before": sum(path.stat().st_size for path in model_files(source)),
        "bytes_after": (folder / layout.MODEL).stat().st_size,
        "bits_per_byte_before": before and before.bits_per_byte,
        "bits_per_byte_after": after and after.bits_per_byte,
        "validation_tokens": after and after.tokens,
    }
    if json:
        each = [{**part._asdict(), "bits_per_weight": part.bits_per_weight} for part in parts]
        say(json_format.dumps({**facts, "parts": each}))
    else:
        _tell(facts, parts, run.name)


@contextmanager
def _validation(
    source: Path, home: Home, screen: Screen, eval_tokens: int
) -> Iterator[Documents | None]:
    """The validation text of the run that saved a model; None where it isn't at hand or wanted."""
    with ExitStack() as stack:
        documents = None
        if eval_tokens:
            try:
                documents = stack.enter_context(closing(validation_documents(source, home)))
            except MlxchatError as error:
                _note(screen, error)
        yield documents


def _note(screen: Screen, error: MlxchatError) -> None:
    screen.show(Noted(time.time(), f"Bits per byte are not measured. {error.problem}"))


def validation_documents(source: Path, home: Home) -> Documents:
    """The validation text of the run that saved a model, as far as it is on disk.

    Raises:
        MlxchatError: the model's directory doesn't say which that is, or it is not there.
    """
    if not (source / layout.TRAINER).exists():
        raise CheckpointError(f"{source} does not say what text the model was trained on.")
    state = read_trainer(source)
    return stage_of(state, home).validation(state.data)


def _bits(
    saved: SavedModel, documents: Documents | None, when: str, tokens: int, screen: Screen
) -> Evaluated | None:
    """Evaluate, showing how far it is; None where there is no text, or not enough."""
    if documents is None:
        return None
    task, result = f"validation {when}", None
    try:
        for event in evaluate(saved, documents, tokens):
            if isinstance(event, Evaluated):
                result = event
                screen.show(Progressed(event.time, task, tokens, tokens, "tokens"))
            elif isinstance(event, Evaluating):
                done = tokens * event.batch // event.batches
                screen.show(Progressed(event.time, task, done, tokens, "tokens"))
    except MlxchatError as error:
        _note(screen, error)
    return result


def _tell(facts: dict[str, Any], parts: list[Part], run: str) -> None:
    rows = [
        (
            part.name,
            part.stored,
            part.parameters,
            round(part.bits_per_weight, 2),
            _megabytes(part.bytes_before),
            _megabytes(part.bytes_after),
        )
        for part in parts
    ]
    table(["weights", "stored as", "number", "bits each", "MB before", "MB after"], rows)
    small, large = facts["bytes_after"], facts["bytes_before"]
    say(
        f"{amount(large, 'bytes')} before, {amount(small, 'bytes')} after: {small / large:.3f} "
        f"of it, in {facts['path']}"
    )
    before, after = facts["bits_per_byte_before"], facts["bits_per_byte_after"]
    if after is not None:
        say(
            f"{before:.4f} bits per byte before, {after:.4f} after ({after / before - 1:+.2%}), "
            f"on {facts['validation_tokens']:,} validation tokens"
        )
    say(f"Talk to it: mlxchat chat --model-tag {run}")


def _megabytes(count: int) -> float:
    return round(count / 1e6, 2)
