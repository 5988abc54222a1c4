"""The prompts of CORE's examples, as text and token ids, and which of their tokens are scored.

Everything here computes what nanochat does (commit 92d63d4, nanochat/core_eval.py), whose templates
are plain concatenations: solved examples, each followed by a blank line, then the example itself.
"""

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mlxchat.errors import DataError
from mlxchat.evaluate.core_tasks import (
    ChoiceItem,
    CompletionItem,
    CoreItem,
    CoreKind,
    CoreTask,
    SchemaItem,
)
from mlxchat.tokenizer.bpe import Tokenizer

SHOTS_SEED = 1234  # plus the number of the example: which others come before it
ENCODERS = 4  # threads; the tokenizer lets go of Python's lock


@dataclass(frozen=True)
class CoreRow:
    """A prompt as token ids, of which those from ``start`` to before ``end`` are scored."""

    ids: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class CoreExample:
    """An example of a task for a model.

    Attributes:
        index: its number in the task.
        rows: a prompt for each answer or context, or the only one of a completion.
        gold: the number of the right row; None for a completion, which is right if the model
            predicts every scored token.
        prefix: the number of leading ids that all rows share.
    """

    index: int
    rows: tuple[CoreRow, ...]
    gold: int | None
    prefix: int

    @classmethod
    def of(cls, index: int, rows: tuple[CoreRow, ...], gold: int | None) -> "CoreExample":
        """Return the example with such rows."""
        return cls(index, rows, gold, common_prefix([row.ids for row in rows]))


# ==== Text ====


def shots(task: CoreTask, count: int, index: int) -> list[int]:
    """Return the numbers of the solved examples that come before an example.

    Args:
        task: the task.
        count: how many examples there are, more than the task's shots.
        index: the number of the example, which is not drawn.
    """
    others = [*range(index), *range(index + 1, count)]
    return random.Random(SHOTS_SEED + index).sample(others, task.shots)


def render_prompts(task: CoreTask, items: Sequence[CoreItem], index: int) -> list[str]:
    """Return the prompts of an example: one for each answer or context.

    Those of a completion are two: without the continuation, stripped, and with it.
    """
    solved = (_solved(items[shot], task.delimiter) for shot in shots(task, len(items), index))
    before = "".join(f"{text}\n\n" for text in solved)
    item = items[index]
    match item:
        case ChoiceItem():
            return [f"{before}{item.query}{task.delimiter}{choice}" for choice in item.choices]
        case SchemaItem():
            return [
                f"{before}{context}{task.delimiter}{item.continuation}"
                for context in item.context_options
            ]
        case CompletionItem():
            prompt = f"{before}{item.context.strip()}{task.delimiter}"
            return [prompt.strip(), f"{prompt}{item.continuation}"]


def _solved(item: CoreItem, delimiter: str) -> str:
    match item:
        case ChoiceItem():
            return f"{item.query}{delimiter}{item.choices[item.gold]}"
        case SchemaItem():
            return f"{item.context_options[item.gold]}{delimiter}{item.continuation}"
        case CompletionItem():
            return f"{item.context.strip()}{delimiter}{item.continuation}"


# ==== Ids ====


def mark_rows(kind: CoreKind, prompts: Sequence[Sequence[int]]) -> tuple[CoreRow, ...]:
    """Return the rows of an example, given the ids of its prompts.

    What answers have in common at their beginning, or continuations of contexts at their end, tells
    where they start. So a token that answers begin with alike does not count, and a row may be left
    without any that does.

    Raises:
        ValueError: the ids of a completion do not begin with those of its prompt.
    """
    if kind == "completion":
        without, whole = prompts
        if len(without) >= len(whole) or list(whole[: len(without)]) != list(without):
            raise ValueError("its tokens do not start with the tokens of its prompt")
        return (CoreRow(tuple(whole), len(without), len(whole)),)
    if kind == "multiple choice":
        start = common_prefix(prompts)
        return tuple(CoreRow(tuple(ids), start, len(ids)) for ids in prompts)
    suffix = common_prefix([ids[::-1] for ids in prompts])
    return tuple(CoreRow(tuple(ids), len(ids) - suffix, len(ids)) for ids in prompts)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many ids all rows begin with.

    >>> common_prefix([[7, 8, 9], [7, 8, 1, 2]])
    2
    """
    # Of all rows, the first and the last in lexicographic order have the least in common.
    ids = [list(row) for row in rows]
    first, last = min(ids), max(ids)
    shortest = min(len(first), len(last))
    return bisect_left(range(shortest), True, key=lambda n: first[: n + 1] != last[: n + 1])


def encode_examples(
    task: CoreTask, items: Sequence[CoreItem], indices: Sequence[int], tokenizer: Tokenizer
) -> Iterator[CoreExample]:
    """Yield examples of a task as ids, in order.

    Args:
        task: the task.
        items: all its examples.
        indices: the numbers of those to encode.
        tokenizer: the model's.

    Raises:
        DataError: the tokenizer joins the end of a completion's prompt with its continuation, so
            that nothing tells where it begins.
    """

    def example(index: int) -> CoreExample:
        item, prompts = items[index], render_prompts(task, items, index)
        ids = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
        try:
            rows = mark_rows(task.kind, ids)
        except ValueError as error:
            raise DataError(
                f"Example {index} of {task.file} cannot be evaluated: {error}.",
                "Leave the task out with `tasks`.",
            ) from error
        gold = None if isinstance(item, CompletionItem) else item.gold
        return CoreExample.of(index, rows, gold)

    with ThreadPoolExecutor(ENCODERS) as pool:
        yield from pool.map(example, indices)
