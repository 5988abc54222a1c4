"""Samples of a model in training: greedy continuations of a stage's prompts."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from mlxchat.engine.generate import Tool, continue_greedily
from mlxchat.model.gpt import GPT
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer

SAMPLES = 7  # after the last step
SAMPLES_ON_THE_WAY = 2  # few, so that the steps around them stay on the screen
SAMPLE_TOKENS = 16  # at most; also at most a quarter of the context


def samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Iterable[tuple[str, list[int]]],
    tools: Callable[[], Tool] | None,
    most: int = SAMPLES,
) -> Iterator[tuple[str, str]]:
    """Yield the first prompts that leave room in the context, each with its greedy continuation.

    Args:
        model: continues them.
        tokenizer: decodes the continuations.
        prompts: each prompt as text and as ids.
        tools: makes the tool that the model may use; None for no tools.
        most: the number of prompts to continue, at most.
    """
    context = model.config.sequence_len
    length = min(SAMPLE_TOKENS, context // 4)
    room = context - length
    fitting = list(islice(((words, ids) for words, ids in prompts if len(ids) <= room), most))
    if not fitting:
        return
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    continuations = continue_greedily(model, [ids for _, ids in fitting], stop, length, tools)
    for (words, _), tokens in zip(fitting, continuations, strict=True):
        yield words, tokenizer.decode(tokens)
