"""What a model makes of some prompts while it is trained."""

from collections.abc import Iterator

from mlxchat.data import corpus
from mlxchat.data.conversations import Conversation, Message
from mlxchat.data.documents import Documents
from mlxchat.data.tokenizer import ASSISTANT_END, Tokenizer
from mlxchat.engine.generate import continue_greedily
from mlxchat.model.gpt import GPT

TOKENS = 16  # of a sample at most
PROMPTS = (  # nanochat's
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)
BUILTIN_PROMPTS = 5


def samples(model: GPT, tokenizer: Tokenizer, documents: Documents) -> Iterator[tuple[str, str]]:
    """Prompts that suit what the model is trained on, each with its greedy continuation."""
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    prompts, ids = zip(*_prompts(tokenizer, documents), strict=True)
    continuations = continue_greedily(model, ids, stop, TOKENS)
    for prompt, tokens in zip(prompts, continuations, strict=True):
        yield prompt, tokenizer.decode(tokens)


def _prompts(tokenizer: Tokenizer, documents: Documents) -> Iterator[tuple[str, list[int]]]:
    if not documents.conversational:
        for prompt in PROMPTS:
            yield prompt, [tokenizer.bos, *tokenizer.encode(prompt)]
        return
    for question in corpus.held_out(BUILTIN_PROMPTS):
        conversation = Conversation((Message("user", question.prompt),))
        yield question.prompt, tokenizer.render_for_completion(conversation)
