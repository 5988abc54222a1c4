"""The command `quantize`."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.checkpoint import catalog, store
from mlxchat.cli.options import (
    Checkpoint,
    Json,
    ModelTag,
    StepNumber,
    model_in_words,
    require_one_place,
)
from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.model.quantization import Quantization
from mlxchat.telemetry.events import Evaluated, Evaluating, Noted, Progressed
from mlxchat.ui.console import Screen, say, say_json, table
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.data.documents import Documents
    from mlxchat.quantize import QuantizedPart


def quantize_command(
    quantization: Quantization,
    model_tag: ModelTag = None,
    step: StepNumber = None,
    checkpoint: Checkpoint = None,
    eval_tokens: Annotated[
        int,
        typer.Option(min=0, help="Validation tokens, before and after; 0 skips validation."),
    ] = 16_384,
    json: Json = False,
) -> None:
    """Save a copy of a model in fewer bits: about a sixth of its size at 4 bits.

    The copy is a run of its own, such as d12-4bit, for chat, eval and export; mlx-lm
    loads it if the architecture is classic. It cannot be trained further. The original
    model is kept.

    If the validation text is on disk, the loss in bits per byte is measured before and
    after. Progress goes to standard error.
    """
    require_one_place(model_tag, step, checkpoint)
    from mlxchat import runtime
    from mlxchat.checkpoint import layout
    from mlxchat.checkpoint.layout import model_files
    from mlxchat.quantize import destination, quantize, save_quantized
    from mlxchat.train.stage import history_of

    home = Home.from_environment()
    source = catalog.locate(home.stages, model_tag, step, checkpoint)
    stage = source.resolve().parent.parent
    runs = stage if stage in home.stages else home.runs
    run, number = destination(runs, source, quantization)
    formats = quantization.formats(layout.read_config(source))
    runtime.bound_buffer_cache()
    with (
        store.locked(run),
        Screen(stream=sys.stderr) as screen,
        _validation(source, home, screen, eval_tokens) as documents,
    ):
        past = history_of(source, home)
        saved = layout.read_model(source, runtime.machine().compute_dtype)
        name = model_in_words(source, checkpoint)
        screen.show(Noted(time.time(), f"The model: {name}."))
        before = _evaluate(saved, documents, "before", eval_tokens, screen)
        parts = quantize(saved.model, formats)
        folder = save_quantized(run, number, saved, past)
        after = before and _evaluate(saved, documents, "after", eval_tokens, screen)
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
        say_json({**facts, "parts": each})
    else:
        _show(facts, parts, run.name)


@contextmanager
def _validation(
    source: Path, home: Home, screen: Screen, eval_tokens: int
) -> "Iterator[Documents | None]":
    """Open the validation text of the run that saved a model; None if unavailable or unwanted."""
    from mlxchat.train.stage import validation_documents

    with ExitStack() as stack:
        documents = None
        if eval_tokens:
            try:
                documents = stack.enter_context(closing(validation_documents(source, home)))
            except MlxchatError as error:
                _note_skipped(screen, error)
        yield documents


def _evaluate(
    saved: "SavedModel", documents: "Documents | None", when: str, tokens: int, screen: Screen
) -> Evaluated | None:
    """Measure the validation loss, showing progress; None if there is not enough text."""
    from mlxchat.quantize import evaluate

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
        _note_skipped(screen, error)
    return result


def _note_skipped(screen: Screen, error: MlxchatError) -> None:
    screen.show(Noted(time.time(), f"Bits per byte are not measured. {error.problem}"))


def _show(facts: dict[str, Any], parts: "list[QuantizedPart]", run: str) -> None:
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
        f"{amount(large, 'bytes')} before, {amount(small, 'bytes')} after ({small / large:.3f} of "
        f"the size), in {facts['path']}"
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
