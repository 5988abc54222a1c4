"""Bits per byte: the validation loss in a unit that does not depend on the tokenizer."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mlxchat.data.loader import Batch
from mlxchat.errors import MlxchatError
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Evaluating, Event
from mlxchat.tokenizer.bpe import Tokenizer


def bits_per_byte(
    losses: Callable[[mx.array, mx.array], mx.array],
    batches: Iterable[Batch],
    limit: int,
    tokenizer: Tokenizer,
    step: int = 0,
    clock: Callable[[], float] = time.time,
) -> Iterator[Event]:
    """Evaluate on at most ``limit`` batches; the last event carries the result.

    As nanochat counts: the summed nats of all tokens that stand for bytes, over the summed bytes;
    special tokens stand for none and count in neither, nor do targets of -1. (A token that ends
    within a letter counts its own bytes, not those of its decoded replacement character.) ``loss``
    is the mean over all targets that are not -1.

    Args:
        losses: nats at every position from ids and targets, as `GPT.losses`.
        limit: batches at most.

    Raises:
        MlxchatError: there was no target that stands for bytes.
    """
    begun = clock()
    lengths = mx.array(tokenizer.byte_lengths())
    sums, tokens = np.zeros(3), 0
    for i, batch in zip(range(limit), batches, strict=False):
        yield Evaluating(clock(), step, i, limit)
        targets = mx.array(batch.targets)
        each = losses(mx.array(batch.ids), targets)
        bytes_each = lengths[mx.maximum(targets, 0)] * (targets >= 0)
        # By row, and those in float64: a float32 sum of a large batch is off by 1e-4 of it.
        rows = [each.sum(axis=1), (each * (bytes_each > 0)).sum(axis=1), bytes_each.sum(axis=1)]
        sums += np.array(mx.stack(rows), np.float64).sum(axis=1)
        tokens += int((batch.targets >= 0).sum())
    nats, counted, bytes_seen = sums.tolist()
    if not bytes_seen:
        raise MlxchatError(
            "The validation data does not fill one row of the context length, or no answer in it "
            "is within that.",
            "Use more of it, or a model of another context length.",
        )
    yield Evaluated(
        clock(),
        step,
        bits_per_byte=counted / (math.log(2) * bytes_seen),
        loss=nats / tokens,
        tokens=tokens,
        seconds=clock() - begun,
    )
