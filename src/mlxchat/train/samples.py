"""What a model makes of some prompts while it is trained."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from mlxchat.engine.generate import Tool, continue_greedily
from mlxchat.model.gpt import GPT
from mlxchat.tokenizer.bpe import ASSISTANT_END, Tokenizer

MOST = 7
TOKENS = 16  # of a sample at most, and a quarter of the context


def samples(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Iterable[tuple[str, list[int]]],
    tools: Callable[[], Tool] | None,
) -> Iterator[tuple[str, str]]:
    """The first prompts that leave room in the context, each with its greedy continuation.

    Args:
        prompts: in words, and as ids.
        tools: that the model may use; None for none.
    """
    context = model.config.sequence_len
    length = min(TOKENS, context // 4)
    room = context - length
    fitting = list(islice(((words, ids) for words, ids in prompts if len(ids) <= room), MOST))
    if not fitting:
        return
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    continuations = continue_greedily(model, [ids for _, ids in fitting], stop, length, tools)
    for (words, _), tokens in zip(fitting, continuations, strict=True):
        yield words, tokenizer.decode(tokens)
