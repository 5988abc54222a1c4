"""Byte-pair encoding: trained by rustbpe, run by tiktoken, stored as `tokenizers` reads it.

The split pattern, the special tokens and the way a conversation becomes tokens are nanochat's.
"""

import json
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import rustbpe
import tiktoken

from mlxchat.errors import DataError, NotFound
from mlxchat.tokenizer import files
from mlxchat.tokenizer.files import CHAT_TEMPLATE
from mlxchat.tokenizer.messages import Conversation, Document, Message

SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
BOS = "<|bos|>"
ASSISTANT_END = "<|assistant_end|>"
SPECIAL_TOKENS = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    ASSISTANT_END,
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte, no merge

_ENDING = (signal.SIGINT, signal.SIGTERM)
_TRAIN_ANEW = "Train one anew: mlxchat tokenizer train"
_NO_TOKENIZER = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


class Tokenizer:
    """Text to token ids and back.

    Args:
        ranks: bytes of each token to its id, which is also the order of merging.
        pattern: regular expression that splits text before merging.
        special: special tokens to their ids.

    Attributes:
        ranks, pattern, special_tokens: as they were given.
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> None:
        self._encoding = tiktoken.Encoding(
            "mlxchat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.ranks, self.pattern, self.special_tokens = ranks, pattern, special
        self._bytes = {rank: token for token, rank in ranks.items()}

    @property
    def vocab_size(self) -> int:
        """Tokens, special ones included."""
        return len(self.ranks) + len(self.special_tokens)

    @property
    def bos(self) -> int:
        """The id that begins every document."""
        return self.special_tokens[BOS]

    def special(self, name: str) -> int:
        """The id of a special token, such as ``<|bos|>``."""
        return self.special_tokens[name]

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; none for a special token."""
        return self._bytes.get(token, b"")

    def byte_lengths(self) -> list[int]:
        """Number of bytes of every token, by id; 0 for special tokens."""
        return [len(self.token_bytes(token)) for token in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """Ids of a text. What looks like a special token in it is plain text."""
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens; what is not UTF-8 becomes replacement characters."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def encode_documents(self, documents: Sequence[Document], threads: int) -> list[list[int]]:
        """Ids of each document, beginning with ``<|bos|>``; texts in parallel."""
        texts = [document for document in documents if isinstance(document, str)]
        encoded = iter(self._encoding.encode_ordinary_batch(texts, num_threads=threads))
        return [
            [self.bos, *next(encoded)] if isinstance(document, str) else self.render(document)[0]
            for document in documents
        ]

    def render(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and a mask that is 1 on what an assistant learns to say.

        That is the assistant's text and Python with their ends, and not what Python answered.

        Raises:
            MlxchatError: user and assistant do not take turns, beginning with the user.
        """
        ids, mask = [self.bos], [0]
        for message in conversation.turns():
            for segment, learned in self._segments(message):
                ids += segment
                mask += [learned] * len(segment)
        return ids, mask

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation that ends with the user, up to where the assistant begins.

        Raises:
            MlxchatError: as `render`, and where the assistant has spoken last.
        """
        ids, _mask = self.render(conversation)
        if ids[-1] == self.special(ASSISTANT_END):
            raise DataError(
                "The conversation to complete ends with an answer.", "End it with the user's turn."
            )
        return [*ids, self.special("<|assistant_start|>")]

    def _segments(self, message: Message) -> Iterator[tuple[list[int], int]]:
        """The ids of a message piece by piece, each with its value in the mask."""
        spoken = int(message.role == "assistant")
        yield [self.special(f"<|{message.role}_start|>")], 0
        for part in message.parts:
            ids = self.encode(part.text)
            if part.type == "text":
                yield ids, spoken
            elif part.type == "python":
                yield self._enclosed("python", ids), spoken
            else:
                yield self._enclosed("output", ids), 0
        yield [self.special(f"<|{message.role}_end|>")], spoken

    def _enclosed(self, name: str, ids: list[int]) -> list[int]:
        return [self.special(f"<|{name}_start|>"), *ids, self.special(f"<|{name}_end|>")]

    def save(self, folder: Path, conversational: bool = False) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` into an existing folder.

        Args:
            conversational: the model it goes with was trained on conversations: add the chat
                template, whose presence says so.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": ASSISTANT_END,
            "clean_up_tokenization_spaces": False,
        }
        if conversational:
            config["chat_template"] = CHAT_TEMPLATE
        stored = files.to_json(self.ranks, self.pattern, self.special_tokens)
        (folder / FILE).write_text(json.dumps(stored, ensure_ascii=False), "utf-8")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read ``tokenizer.json`` from a folder.

        Raises:
            MlxchatError: no such file, or not a byte-level BPE tokenizer with nanochat's tokens.
        """
        path = folder / FILE
        try:
            ranks, pattern, special = files.from_json(json.loads(path.read_text("utf-8")))
            fault = vocabulary_fault(ranks, special)
            tokenizer = None if fault else cls(ranks, pattern, special)
        except FileNotFoundError:
            raise NotFound(
                f"There is no tokenizer: {path} does not exist.",
                "Make one: mlxchat tokenizer train",
            ) from None
        except _NO_TOKENIZER as error:
            raise DataError(
                f"{path} is not a byte-level BPE tokenizer ({type(error).__name__}: {error}).",
                _TRAIN_ANEW,
            ) from error
        if tokenizer is None:
            raise DataError(f"{path} {fault}.", _TRAIN_ANEW)
        return tokenizer


def vocabulary_fault(ranks: dict[bytes, int], special: dict[str, int]) -> str | None:
    """What is wrong with a file's vocabulary, such as "has no token for the byte 0"; None where a
    model can use it.

    To be asked before `Tokenizer` is made of it: for some faults tiktoken would end the process.
    """
    ids = [*ranks.values(), *special.values()]
    if any(type(token) is not int for token in ids) or sorted(ids) != list(range(len(ids))):
        return f"has ids that are not 0 to {len(ids) - 1:,}, each once"
    if missing := [token for token in SPECIAL_TOKENS if token not in special]:
        return f"lacks the special tokens {', '.join(missing)}"
    if unknown := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        return f"has no token for the byte {unknown[0]}"
    if b"" in ranks:
        return "has a token without a byte"
    return None


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from texts; the vocabulary is smaller where the text has no more pairs.

    Raises:
        MlxchatError: ``vocab_size`` leaves no room for the 256 bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"A vocabulary of {vocab_size} tokens is too small.",
            f"It takes at least {SMALLEST_VOCABULARY}: 256 bytes and 9 special tokens.",
        )
    trainer = rustbpe.Tokenizer()
    with ExitStack() as stack:

        def until_read() -> Iterator[str]:
            yield from texts
            stack.enter_context(_ended_by_signals())

        trainer.train_from_iterator(
            until_read(), vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN
        )
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
    return Tokenizer(ranks, SPLIT_PATTERN, special)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within it the system ends the process at Ctrl-C or SIGTERM.

    Python could not: rustbpe takes minutes to merge the pairs of a large text, lets no Python run
    meanwhile and does not look at signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
