"""The loss of a model on the user's own text files."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.data.files import TEXT, kind
from mlxchat.data.own_text import OWN_KINDS, read_documents, read_pieces
from mlxchat.data.text_files import Reading, failures_named
from mlxchat.errors import DataError, NotFound
from mlxchat.evaluate.loss import bits_per_byte, lay_out_text
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Evaluated, Evaluating, Progressed, Report
from mlxchat.tokenizer.bpe import Tokenizer

ENCODED_AT_ONCE = 2**20  # characters of a text


@dataclass(frozen=True)
class TextLoss:
    """The loss of a model on the text of a file.

    Attributes:
        path: the file.
        documents: the number of texts in it, each of which is read separately.
        tokens: the number of tokens that were predicted.
        loss: their mean cross entropy in nats.
        bits_per_byte: comparable between models with different tokenizers.
    """

    path: Path
    documents: int
    tokens: int
    loss: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """e to the loss, per token: not comparable between tokenizers."""
        return math.exp(self.loss)


def require_texts(paths: Iterable[Path]) -> None:
    """Check that files are there and of a kind that holds text.

    Raises:
        NotFound: one is missing.
        DataError: one is of another kind.
    """
    for path in paths:
        if not path.is_file():
            raise NotFound(f"There is no file {path}.", "Name a text file with `text`.")
        if kind(path) not in OWN_KINDS:
            raise DataError(
                f"{path} does not have the name of a text file.", f"Use {', '.join(OWN_KINDS)}."
            )


def text_loss(
    saved: SavedModel, path: Path, report: Report, clock: Clock = SYSTEM_CLOCK
) -> TextLoss:
    """Measure how well a model predicts the text of a file.

    A text file is one text, from beginning to end; of rows, each is one. Where a text is longer
    than the context, each piece of it is predicted from its own tokens only.

    Args:
        saved: the model.
        path: the file.
        report: receives the progress.
        clock: stamps the events.

    Raises:
        DataError: it cannot be read, or has nothing to predict.
    """
    try:
        texts = list(_texts(path, saved.tokenizer))
    except DataError as error:  # its remedy may be a setting that there is none of here
        remedy = "Correct it, convert it to UTF-8, or name another file with `text`."
        raise DataError(error.problem, remedy) from error
    batches = lay_out_text(texts, saved.tokenizer.bos, saved.model.config.sequence_len)
    try:
        for event in bits_per_byte(saved.model.losses, batches, len(batches), saved.tokenizer):
            done = event.batch if isinstance(event, Evaluating) else len(batches)
            report(Progressed(clock(), path.name, done, len(batches), "batches"))
    except DataError as error:
        raise DataError(f"{path} has no text to predict.", "Name another file.") from error
    assert isinstance(event, Evaluated)
    return TextLoss(path, len(texts), event.tokens, event.loss, event.bits_per_byte)


def _texts(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the ids of each text in a file."""
    reading = Reading(path, settable=False)
    if kind(path) not in TEXT:
        for document in read_documents(reading, leave_out=lambda place, reason: None):
            yield [tokenizer.bos, *tokenizer.encode(document)]
        return
    ids, held, size = [tokenizer.bos], list[str](), 0
    with failures_named(path):
        for piece in read_pieces(reading):
            held.append(piece)
            size += len(piece)
            if size >= ENCODED_AT_ONCE:
                ids += tokenizer.encode("".join(held))
                held, size = [], 0
    yield [*ids, *tokenizer.encode("".join(held))]
