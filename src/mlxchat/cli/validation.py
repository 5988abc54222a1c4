"""The loss of a model before and after it is changed, for the commands that save a changed copy."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxchat.errors import MlxchatError
from mlxchat.home import Home
from mlxchat.telemetry.events import Evaluated, Evaluating, Noted, Progressed
from mlxchat.ui.console import Screen, say
from mlxchat.ui.text import amount

if TYPE_CHECKING:
    from mlxchat.checkpoint.layout import SavedModel
    from mlxchat.data.documents import Documents

EVAL_TOKENS = 16_384  # by default
EvalTokens = Annotated[
    int,
    typer.Option(min=0, help="Validation tokens to read, before and after; 0 skips validation."),
]


@contextmanager
def validation_text(
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


def measured(
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
    screen.show(Noted(time.time(), f"Bits per byte were not measured. {error.problem}"))


def loss_facts(before: Evaluated | None, after: Evaluated | None) -> dict[str, Any]:
    """Return what the two measurements have shown, for JSON; None where nothing was measured."""
    return {
        "bits_per_byte_before": before and before.bits_per_byte,
        "bits_per_byte_after": after and after.bits_per_byte,
        "validation_tokens": after and after.tokens,
    }


def say_losses(facts: Mapping[str, Any]) -> None:
    """Print the two losses, if they were measured.

    Args:
        facts: those of `loss_facts`, perhaps among others.
    """
    before, after = facts["bits_per_byte_before"], facts["bits_per_byte_after"]
    if after is not None:
        change = round(after / before - 1, 4) + 0.0  # which makes no difference +0.00%, not -0.00%
        say(
            f"{before:.4f} bits per byte before, {after:.4f} after ({change:+.2%}), "
            f"on {amount(facts['validation_tokens'], 'validation tokens')}"
        )
