"""Bits per byte: the validation loss in a unit that does not depend on the tokenizer.

Held-out conversations: how well a model foresees the answers, and gives them itself.

And held-out questions of the built-in corpus, which none of its conversations asks.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import eq

import numpy as np

from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.data.corpus.world import Question
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.errors import DataError
from mlxchat.evaluate.answers import by_length, padded
from mlxchat.evaluate.tasks import Exercise, asked
from mlxchat.runtime import mx
from mlxchat.telemetry.events import Evaluated, Evaluating, Event
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation


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
        raise DataError(
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


LONGEST_REPLY = 64  # tokens, that is asked for
BUILTIN_QUESTIONS = 200


@dataclass(frozen=True)
class HeldOut:
    """Conversations as `mlxchat.evaluate.loss.bits_per_byte` wants them.

    Attributes:
        batches: each row a conversation, padded on the right; targets of -1 on all but what the
            assistant says.
        conversations: in all.
        cut: of them, that lost their end because they were longer than the context.
    """

    batches: list[Batch]
    conversations: int
    cut: int


def held_out(conversations: Iterable[Conversation], tokenizer: Tokenizer, context: int) -> HeldOut:
    """Lay out conversations, each in a row of its own.

    Args:
        context: ids in a row at most.

    Raises:
        MlxchatError: in all of them the assistant speaks beyond the context only.
    """
    rows: list[tuple[list[int], list[int]]] = []
    cut = 0
    for conversation in conversations:
        ids, mask = tokenizer.render(conversation)
        cut += len(ids) > context + 1
        targets = [token if learned else -1 for token, learned in zip(ids, mask, strict=True)]
        rows.append((ids[:-1][:context], targets[1:][:context]))
    if not any(target >= 0 for _, targets in rows for target in targets):
        raise DataError(
            f"No held-out conversation has an answer within the model's context of {context:,} "
            "tokens.",
            "Give shorter conversations with `data`, or use a model with a longer context.",
        )
    batches = [
        Batch(
            padded([rows[index][0] for index in group], tokenizer.bos),
            padded([rows[index][1] for index in group], -1),
            LoaderState(),
        )
        for group in by_length([len(ids) for ids, _ in rows])
    ]
    return HeldOut(batches, len(rows), cut)


def replies(conversations: Iterable[Conversation], tokenizer: Tokenizer) -> list[Exercise]:
    """Of each conversation the last reply, to be given word for word; only those of at most
    `LONGEST_REPLY` tokens.
    """
    exercises = []
    for conversation in conversations:
        *earlier, last = conversation.messages
        prompt = Conversation(tuple(earlier))
        reply = tokenizer.render(conversation)[0][len(tokenizer.render_for_completion(prompt)) : -1]
        if len(reply) <= LONGEST_REPLY:
            exercises.append(Exercise(prompt, partial(eq, last.text)))
    return exercises


def builtin_questions(most: int | None) -> list[Exercise]:
    """The first ``most`` of the built-in corpus's questions that no conversation of it asks."""
    count = BUILTIN_QUESTIONS if most is None else min(most, BUILTIN_QUESTIONS)
    return word_for_word(held_out_questions(count))


def word_for_word(questions: Iterable[Question]) -> list[Exercise]:
    """Questions whose answers are to be those expected; blanks around them do not count."""
    return [Exercise(asked(each.prompt), _says(each.answer)) for each in questions]


def _says(expected: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip() == expected
