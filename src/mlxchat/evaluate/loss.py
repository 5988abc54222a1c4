"""The loss in bits per byte, and the held-out text, conversations and questions it is measured on.

Bits per byte do not depend on the tokenizer, so models with different vocabularies can be compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq

import numpy as np

from mlxchat.data.corpus.documents import held_out_questions
from mlxchat.data.corpus.world import Question
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.errors import DataError
from mlxchat.evaluate.answers import by_length, padded
from mlxchat.evaluate.tasks import Exercise, user_prompt
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Evaluated, Evaluating, Event
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation

LONGEST_REPLY = 64  # tokens; longer replies are not compared word for word
BUILTIN_QUESTIONS = 200


def bits_per_byte(
    losses: Callable[[mx.array, mx.array], mx.array],
    batches: Iterable[Batch],
    limit: int,
    tokenizer: Tokenizer,
    step: int = 0,
    clock: Clock = SYSTEM_CLOCK,
    summed: Callable[[list[float]], list[float]] = lambda numbers: numbers,
) -> Iterator[Event]:
    """Evaluate on at most ``limit`` batches, yielding progress and, last, an `Evaluated`.

    As in nanochat, bits per byte are the summed nats of all targets that stand for bytes, over
    those bytes. Special tokens stand for no bytes and are left out, as are targets of -1. (A token
    that ends within a UTF-8 character counts its own bytes, not those of the replacement character
    it decodes to.) ``loss`` is the mean over all targets other than -1.

    Args:
        losses: returns the nats at every position, (B, T), from ids and targets, as `GPT.losses`.
        batches: what to evaluate on.
        limit: the most of them.
        tokenizer: tells how many bytes a token stands for.
        step: the number of the step, for the events.
        clock: stamps the events.
        summed: returns the sums over all processes that evaluate a part each.

    Raises:
        DataError: no target stands for bytes.
    """
    began = clock.seconds()
    lengths = np.array(tokenizer.byte_lengths())
    sums, tokens = np.zeros(3), 0
    for i, batch in zip(range(limit), batches, strict=False):
        yield Evaluating(clock(), step, i, limit)
        # In float64: a float32 sum over a large batch is off by 1e-4 of itself.
        each = np.array(losses(mx.array(batch.ids), mx.array(batch.targets)), np.float64)  # (B, T)
        bytes_each = lengths[np.maximum(batch.targets, 0)] * (batch.targets >= 0)  # (B, T)
        sums += each.sum(), each[bytes_each > 0].sum(), bytes_each.sum()
        tokens += int((batch.targets >= 0).sum())
    nats, counted, bytes_seen, tokens_seen = summed([*sums.tolist(), float(tokens)])
    if not bytes_seen:
        raise DataError(
            "The validation data does not fill a single row of the context length, or contains no "
            "answer.",
            "Use more validation data, or a model with another context length.",
        )
    yield Evaluated(
        clock(),
        step,
        bits_per_byte=counted / (math.log(2) * bytes_seen),
        loss=nats / tokens_seen,
        tokens=int(tokens_seen),
        seconds=clock.seconds() - began,
    )


@dataclass(frozen=True)
class HeldOut:
    """Conversations laid out for `bits_per_byte`.

    Attributes:
        batches: one conversation per row, padded on the right; targets are -1 except on what the
            assistant says.
        conversations: the number of conversations.
        cut: how many of them were truncated because they were longer than the context.
    """

    batches: list[Batch]
    conversations: int
    cut: int


def lay_out(conversations: Iterable[Conversation], tokenizer: Tokenizer, context: int) -> HeldOut:
    """Lay out conversations, each in a row of its own of at most ``context`` ids.

    Raises:
        DataError: no conversation has an answer within the context.
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
    return HeldOut(_batches(rows, tokenizer.bos), len(rows), cut)


def lay_out_text(texts: Iterable[Sequence[int]], padding: int, context: int) -> list[Batch]:
    """Lay out texts in rows of at most ``context`` ids, each predicted from its own ids only.

    Args:
        texts: token ids; the first of each text is given, the others are predicted.
        padding: the id after the end of shorter rows.
        context: the most ids in a row.
    """
    pieces = (
        ids[start : start + context + 1]
        for ids in texts
        for start in range(0, len(ids) - 1, context)
    )
    return _batches([(piece[:-1], piece[1:]) for piece in pieces], padding)


def _batches(rows: Sequence[tuple[Sequence[int], Sequence[int]]], padding: int) -> list[Batch]:
    """Return batches of rows of similar length; a row consists of its ids and targets."""
    return [
        Batch(
            padded([rows[index][0] for index in group], padding),
            padded([rows[index][1] for index in group], -1),
            LoaderState(),
        )
        for group in by_length([len(ids) for ids, _ in rows])
    ]


def last_replies(conversations: Iterable[Conversation], tokenizer: Tokenizer) -> list[Exercise]:
    """Return exercises that ask for the last reply of each conversation, word for word.

    Conversations whose last reply is longer than `LONGEST_REPLY` tokens are skipped.
    """
    exercises = []
    for conversation in conversations:
        prompt = Conversation(conversation.messages[:-1])
        reply = tokenizer.render(conversation)[0][len(tokenizer.render_for_completion(prompt)) : -1]
        if len(reply) <= LONGEST_REPLY:
            expected = tokenizer.decode(reply, keep_special=True)
            exercises.append(Exercise(prompt, partial(eq, expected)))
    return exercises


def builtin_questions(limit: int | None) -> list[Exercise]:
    """Return the first ``limit`` held-out questions of the built-in corpus.

    No conversation of the corpus asks them.
    """
    count = BUILTIN_QUESTIONS if limit is None else min(limit, BUILTIN_QUESTIONS)
    return word_for_word(held_out_questions(count))


def word_for_word(questions: Iterable[Question]) -> list[Exercise]:
    """Return exercises that accept only the expected answers, apart from blanks around them."""
    return [Exercise(user_prompt(each.prompt), _says(each.answer)) for each in questions]


def _says(expected: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip() == expected
