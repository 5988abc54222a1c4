"""Prepares documents for training: they are encoded, masked, and packed into rows.

`CROPPED_TEXT` and `ANSWERS` are the ways of nanochat's base_train and chat_sft (commit 92d63d4),
`DIALOGUE` is that of its mid_train (commit dfc8833) with one row in a micro-batch.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from mlxchat.data.packing import BestFit, Buffered, EndToEnd, Refill, Rows, mask
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation, Document

BUFFER_DOCUMENTS = 1000  # nanochat's
BUFFER_CONVERSATIONS = 100  # nanochat's
TOKENIZER_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Preparation:
    """A way to prepare documents.

    Attributes:
        encode: returns the ids of documents, given a tokenizer and the tokens in a row; ids that
            are not to be learned are masked. A document may be left out.
        pack: returns the rows, given a tokenizer, the tokens in a row, the source of encoded
            documents, and those of an earlier snapshot.
        cuts: what a document has beyond the tokens of a row is dropped.
    """

    encode: Callable[[Tokenizer, list[Document], int], list[list[int]]]
    pack: Callable[[Tokenizer, int, Refill, Iterable[Buffered]], Rows]
    cuts: bool = True


def _encoded(tokenizer: Tokenizer, documents: list[Document], capacity: int) -> list[list[int]]:
    return tokenizer.encode_documents(documents, TOKENIZER_THREADS)


def _best_fit(
    tokenizer: Tokenizer,
    capacity: int,
    refill: Refill,
    buffered: Iterable[Buffered],
    whole: bool = False,
) -> Rows:
    return BestFit(capacity, BUFFER_DOCUMENTS, refill, buffered, whole=whole)


def _answers(tokenizer: Tokenizer, documents: list[Document], capacity: int) -> list[list[int]]:
    """Return the ids of conversations, masked where the assistant does not speak.

    A conversation is left out if none of an answer is within the first ``capacity`` tokens.
    """
    rendered = (tokenizer.render(c) for c in documents if isinstance(c, Conversation))
    return [
        [token if learned else mask(token) for token, learned in zip(ids, answers, strict=True)]
        for ids, answers in rendered
        if any(answers[:capacity])
    ]


def _padded(
    tokenizer: Tokenizer, capacity: int, refill: Refill, buffered: Iterable[Buffered]
) -> Rows:
    return BestFit(capacity, BUFFER_CONVERSATIONS, refill, buffered, mask(tokenizer.bos))


def _dialogue(tokenizer: Tokenizer, documents: list[Document], capacity: int) -> list[list[int]]:
    return [tokenizer.render(c)[0] for c in documents if isinstance(c, Conversation)]


def _end_to_end(
    tokenizer: Tokenizer, capacity: int, refill: Refill, buffered: Iterable[Buffered]
) -> Rows:
    return EndToEnd(capacity, refill, buffered, mask(tokenizer.bos))


CROPPED_TEXT = Preparation(_encoded, _best_fit)
"""Text; where no document fits into a row, one is cut and its rest dropped."""
WHOLE_TEXT = Preparation(_encoded, partial(_best_fit, whole=True), cuts=False)
"""Text of which also what a row has no room for is used."""
ANSWERS = Preparation(_answers, _padded)
"""Conversations, whole in padded rows, of which only what the assistant says is learned."""
DIALOGUE = Preparation(_dialogue, _end_to_end, cuts=False)
"""Conversations one after another, of which everything is learned: questions too."""
