"""Temperatures that best imitate the soft cap in programs that do not support it.

Softly capped logits, c = bound * tanh(z / bound), lie closer together than the raw ones, z. A
program without the cap draws from sharper probabilities, which a higher temperature softens. It
cannot do exactly the same: the cap bends the logits, a temperature scales them. The nearest one,
for a temperature t with the cap, is the T whose probabilities softmax(z / T) have the smallest mean
Kullback-Leibler divergence from softmax(c / t), over positions of held-out text. That mean is
convex in 1 / T, and its derivative is the difference of the expected raw logits, so bisection finds
its minimum.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import Sampling
from mlxchat.data.documents import BuiltinDocuments, Documents
from mlxchat.data.loader import Loader
from mlxchat.errors import DataError
from mlxchat.model.gpt import GPT
from mlxchat.model.loss import soft_cap
from mlxchat.runtime import mx

USUAL: float = Sampling.model_fields["temperature"].default
SAMPLED_ROWS, ROW_TOKENS = 8, 512  # of held-out text, at most
LARGEST_LOGITS = 2**25  # held at a time, in float32: 128 MiB
_RANGE = (0.5, 16.0)  # the nearest temperature lies between these multiples of the one with the cap
_HALVINGS = 14  # of its range, on a logarithmic scale: to 0.02%


@dataclass(frozen=True)
class NearestTemperatures:
    """The temperatures without the soft cap that are closest to two temperatures with it.

    Attributes:
        usual: the nearest to `USUAL`, mlxchat's default.
        one: the nearest to 1, at which the probabilities are the network's own.
        positions: the number of positions that they were measured at.
        text: the text, in words.
    """

    usual: float
    one: float
    positions: int
    text: str


def nearest_temperatures(
    saved: SavedModel,
    documents: Documents | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NearestTemperatures:
    """Measure the nearest temperatures of a model.

    Args:
        saved: the model.
        documents: the text or conversations that its training held out; by default text of the
            built-in corpus, which is always at hand.
        report: called with the rows that are read, and with their number.

    Raises:
        DataError: the documents hold nothing to predict.
    """
    raw = list(_raw_logits(saved, documents or BuiltinDocuments(seed=0), report))
    if not raw:
        raise DataError("The validation text is too short.")
    logits = mx.concatenate(raw)  # (N, V)
    bound = saved.model.config.softcap
    usual, one = (nearest_temperature(logits, bound, t) for t in (USUAL, 1.0))
    text = "the built-in corpus of mlxchat" if documents is None else "its held-out text"
    return NearestTemperatures(usual, one, len(logits), text)


def nearest_temperature(logits: mx.array, bound: float, temperature: float) -> float:
    """Return the temperature that comes nearest, without the soft cap, to one with it.

    Args:
        logits: (N, V) before the cap.
        bound: the soft cap's.
        temperature: the temperature with the cap.
    """
    capped = mx.softmax(soft_cap(logits, bound) / temperature, axis=-1)
    expected = _expected(capped, logits)
    low, high = (multiple * temperature for multiple in _RANGE)
    for _ in range(_HALVINGS):
        middle: float = (low * high) ** 0.5
        if _expected(mx.softmax(logits / middle, axis=-1), logits) > expected:  # still too sharp
            low = middle
        else:
            high = middle
    return cast(float, (low * high) ** 0.5)


def _expected(probabilities: mx.array, logits: mx.array) -> float:
    return cast(float, (probabilities * logits).sum(-1).mean().item())


def _raw_logits(
    saved: SavedModel, documents: Documents, report: Callable[[int, int], None]
) -> Iterator[mx.array]:
    """Yield raw logits, (n, V) float32, at a few positions of each row of the documents."""
    config = saved.model.config
    most = max(1, LARGEST_LOGITS // (SAMPLED_ROWS * config.vocab_size))  # positions of a row
    with Loader(
        documents.validation(),
        saved.tokenizer,
        1,
        min(config.sequence_len, ROW_TOKENS),
        preparation=documents.preparation,
    ) as batches:
        for row, batch in enumerate(islice(batches, SAMPLED_ROWS), 1):
            [learned] = np.nonzero(batch.targets[0] != -1)
            chosen = learned[:: -(-len(learned) // most)] if len(learned) else learned
            if len(chosen):
                yield _before_the_cap(saved.model, mx.array(batch.ids), mx.array(chosen))
            report(row, SAMPLED_ROWS)


def _before_the_cap(model: GPT, ids: mx.array, positions: mx.array) -> mx.array:
    features = model.features(ids)[0, positions]  # (n, C)
    logits = model.lm_head(features)[:, : model.config.vocab_size].astype(mx.float32)
    mx.eval(logits)
    return logits
