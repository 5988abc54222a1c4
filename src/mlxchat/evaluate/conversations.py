"""Held-out conversations: how well a model foresees the answers, and gives them itself.

And held-out questions of the built-in corpus, which none of its conversations asks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import eq

from mlxchat.data.corpus import documents
from mlxchat.data.corpus.world import Question
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.padding import by_length, padded
from mlxchat.evaluate.tasks.problems import Exercise, asked
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.tokenizer.messages import Conversation

LONGEST_REPLY = 64  # tokens, that is asked for
BUILTIN_QUESTIONS = 200


@dataclass(frozen=True)
class HeldOut:
    """Conversations as `mlxchat.evaluate.bits.bits_per_byte` wants them.

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
        raise MlxchatError(
            f"No held-out conversation has an answer within the model's context of {context:,} "
            "tokens.",
            "Give shorter conversations with --data, or use a model with a longer context.",
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
    return word_for_word(documents.held_out(count))


def word_for_word(questions: Iterable[Question]) -> list[Exercise]:
    """Questions whose answers are to be those expected; blanks around them do not count."""
    return [Exercise(asked(each.prompt), _says(each.answer)) for each in questions]


def _says(expected: str) -> Callable[[str], bool]:
    return lambda answer: answer.strip() == expected
