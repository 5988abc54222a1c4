"""What a model answers to a task's problems."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.engine.generate import continue_greedily
from mlxchat.engine.tools import ToolUse
from mlxchat.evaluate.padding import by_length, padded
from mlxchat.evaluate.tasks.problems import Choice, Exercise, Problem
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import ASSISTANT_END

FRAME = 2  # tokens that stay at the beginning of a prompt: <|bos|><|user_start|>


@dataclass(frozen=True)
class Outcome:
    """A problem, what the model answered, whether that is right.

    Attributes:
        cut: the prompt was too long for the context, and lost its beginning.
    """

    problem: Problem
    answer: str
    right: bool
    cut: bool


def answer(
    saved: SavedModel, problems: Sequence[Problem], batch_size: int, max_tokens: int
) -> Iterator[Outcome]:
    """Answer a task's problems, in any order; ``batch_size`` and ``max_tokens`` as for `write`."""
    yield from choose(saved, [problem for problem in problems if isinstance(problem, Choice)])
    exercises = [problem for problem in problems if isinstance(problem, Exercise)]
    yield from write(saved, exercises, batch_size, max_tokens)


def choose(saved: SavedModel, choices: Sequence[Choice]) -> Iterator[Outcome]:
    """Choose the likeliest of each question's letters, as nanochat does, in any order.

    They are compared by their logits at the last position of the prompt.
    """
    model, tokenizer = saved.model, saved.tokenizer
    whole = [tokenizer.render_for_completion(choice.prompt) for choice in choices]
    prompts = [fitted(ids, model.config.sequence_len) for ids in whole]
    for group in by_length([len(ids) for ids in prompts]):
        rows = [prompts[index] for index in group]
        x = model.features(mx.array(padded(rows, tokenizer.bos)))  # (B, T, C)
        last = mx.array([len(row) - 1 for row in rows])
        logits = np.array(model.logits(x[mx.arange(len(rows)), last]))  # (B, V)
        for index, of_row in zip(group, logits, strict=True):
            choice = choices[index]
            tokens = [tokenizer.encode(letter)[0] for letter in choice.letters]
            letter = choice.letters[int(of_row[tokens].argmax())]
            cut = len(prompts[index]) < len(whole[index])
            yield Outcome(choice, letter, letter == choice.answer, cut)


def write(
    saved: SavedModel, exercises: Sequence[Exercise], batch_size: int, max_tokens: int
) -> Iterator[Outcome]:
    """Write an answer to each exercise at temperature 0, with the calculator, in any order.

    An answer ends with the context; at least half of that, or ``max_tokens``, is left to it.

    Args:
        batch_size: answers written at a time.
        max_tokens: of an answer at most.
    """
    tokenizer, context = saved.tokenizer, saved.model.config.sequence_len
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    room = context - min(max_tokens, context // 2)
    whole = [tokenizer.render_for_completion(exercise.prompt) for exercise in exercises]
    prompts = [fitted(ids, room) for ids in whole]
    for group in by_length([len(ids) for ids in prompts], batch_size):
        rows = [prompts[index] for index in group]
        left = [min(max_tokens, context - len(row)) for row in rows]
        answers = continue_greedily(saved.model, rows, stop, max(left), lambda: ToolUse(tokenizer))
        for index, tokens, most in zip(group, answers, left, strict=True):
            text = tokenizer.decode(tokens[:most])
            exercise, cut = exercises[index], len(prompts[index]) < len(whole[index])
            yield Outcome(exercise, text, exercise.is_right(text), cut)


def fitted(ids: list[int], room: int) -> list[int]:
    """A prompt of at most ``room`` tokens: where it is longer, without the user's first words."""
    return ids if len(ids) <= room else [*ids[:FRAME], *ids[FRAME + len(ids) - room :]]
