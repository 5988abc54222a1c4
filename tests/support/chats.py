"""Chats with a model that recites, and what is said in them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mlxchat.config.inference import ChatSettings
from mlxchat.engine.cache import KVCache
from mlxchat.engine.chat import Chat
from mlxchat.model.config import GPTConfig
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS
from mlxchat.tokenizer.messages import Message
from support.models import BYTES

BOS, USER, USER_END, ASSISTANT, END = (BYTES.special(name) for name in SPECIAL_TOKENS[:5])


class Reciting:
    """A model that recites ``text``, or tokens, after every prompt, byte for byte, then ends.

    ``passes`` notes the tokens that each pass got.
    """

    decode_step = None  # nothing is compiled

    def __init__(
        self, text: str | Sequence[int], ending: int = END, sequence_len: int = 512
    ) -> None:
        script = text.encode() if isinstance(text, str) else text
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=BYTES.vocab_size, n_layer=1, n_head=1,
            n_kv_head=1, n_embd=2,
        )  # fmt: skip
        self._script = [*script, ending]
        self._said = 0
        self.passes: list[list[int]] = []

    def features(self, ids: mx.array, cache: KVCache) -> mx.array:
        self.passes.extend(ids.tolist())
        cache.record(ids)
        cache.layers[0].extend(*mx.zeros((2, 1, 1, ids.shape[1], 2)))
        self._said = self._said + 1 if ids.shape[1] == 1 else 0
        return mx.full((1, ids.shape[1], 1), self._script[self._said % len(self._script)])

    def logits(self, x: mx.array) -> mx.array:
        return 9.0 * (mx.arange(BYTES.vocab_size) == x).astype(mx.float32)

    def __call__(self, ids: mx.array, cache: KVCache) -> mx.array:
        return self.logits(self.features(ids, cache))


def chat(
    model: object,
    *,
    conversational: bool = True,
    max_tokens: int = 64,
    seed: int = 0,
    temperature: float = 0,
    system: str | None = None,
) -> Chat:
    settings = ChatSettings(
        max_tokens=max_tokens, seed=seed, temperature=temperature, system=system
    )
    return Chat(model, BYTES, conversational=conversational, settings=settings)


def say(talk: Chat, text: str) -> str:
    return "".join(piece.text for piece in talk.reply(text))


def dialogue(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents))


def fill(path: Path, *messages: dict) -> Path:
    path.write_text(json.dumps({"messages": messages}))
    return path


def ids_of(text: str) -> list[int]:
    """Tokens of a text in which ``<|python_start|>`` and the like are special."""
    pieces = re.split(r"(<\|\w+\|>)", text)
    return [
        token
        for number, piece in enumerate(pieces)
        for token in ([BYTES.special(piece)] if number % 2 else BYTES.encode(piece))
    ]
