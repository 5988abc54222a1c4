"""What a model makes of some prompts while it is trained."""

from collections.abc import Iterable, Iterator

from mlxchat.data.tokenizer import ASSISTANT_END, Tokenizer
from mlxchat.engine.generate import continue_greedily
from mlxchat.model.gpt import GPT

TOKENS = 16  # of a sample at most


def samples(
    model: GPT, tokenizer: Tokenizer, prompts: Iterable[tuple[str, list[int]]]
) -> Iterator[tuple[str, str]]:
    """Prompts, in words and as ids, each with its greedy continuation."""
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    in_words, ids = zip(*prompts, strict=True)
    continuations = continue_greedily(model, ids, stop, TOKENS)
    for prompt, tokens in zip(in_words, continuations, strict=True):
        yield prompt, tokenizer.decode(tokens)
