"""Byte-pair encoding: trained by rustbpe, run by tiktoken, stored in the `tokenizers` format.

The split pattern, the special tokens and the rendering of conversations are nanochat's
(nanochat/tokenizer.py).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import rustbpe
import tiktoken

from mlxchat.disk import read_regular
from mlxchat.errors import DataError, NotFound, command, reason_of
from mlxchat.json_text import parse_json
from mlxchat.tokenizer import files, safeguards
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

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

_RETRAIN = f"Train a new one: {command('tokenizer train')}"
_NOT_A_TOKENIZER = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
)
_MOST_BYTES = 2**26  # of tokenizer.json; one of 65,536 tokens has 3 million


class Tokenizer:
    """Encodes text and conversations as token ids, and decodes ids.

    Args:
        ranks: the bytes of each token and its id, which is also its rank in merging.
        pattern: the regular expression that splits text before merging.
        special: the special tokens and their ids.

    Attributes:
        ranks, pattern, special_tokens: the arguments.

    >>> tokenizer = Tokenizer.train(["the cow and the calf"] * 2, vocab_size=270)
    >>> tokenizer.encode("the cow")
    [258, 256, 111, 119]
    >>> tokenizer.decode([258, 256, 111, 119])
    'the cow'
    """

    # ==================== Construction ====================

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> None:
        with safeguards.panics_as_errors():
            self._encoding = tiktoken.Encoding(
                "mlxchat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
            )
        self.ranks, self.pattern, self.special_tokens = ranks, pattern, special
        self._bytes = {rank: token for token, rank in ranks.items()}
        self._names = {token: name.encode() for name, token in special.items()}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a tokenizer with nanochat's split pattern and special tokens.

        Args:
            texts: the training text; consumed once.
            vocab_size: the number of tokens, including 256 bytes and 9 special tokens. The
                vocabulary is smaller if the text has no more pairs to merge.

        Raises:
            DataError: ``vocab_size`` is less than 265.

        >>> tokenizer = Tokenizer.train(["moo moo moo moo"], vocab_size=267)
        >>> [tokenizer.token_bytes(token) for token in tokenizer.encode("moo moo")]
        [b'moo', b' ', b'moo']
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise DataError(
                f"A vocabulary of {vocab_size} tokens is too small.",
                f"The minimum is {SMALLEST_VOCABULARY}: 256 bytes and 9 special tokens.",
            )
        trainer = rustbpe.Tokenizer()
        with ExitStack() as stack:

            def until_read() -> Iterator[str]:
                for text in texts:
                    for part, blank in safeguards.split_blanks(text):
                        # Blanks alone are too many for rustbpe too.
                        size = safeguards.LONG_RUN if blank else max(1, len(part))
                        yield from (part[i : i + size] for i in range(0, len(part), size))
                stack.enter_context(safeguards.ended_by_signals())

            stack.enter_context(safeguards.panics_as_errors())
            trainer.train_from_iterator(
                until_read(), vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN
            )
        ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
        special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        return cls(ranks, SPLIT_PATTERN, special)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read ``tokenizer.json`` from a folder.

        Raises:
            NotFound: there is no such file.
            DataError: it cannot be read, or is not a byte-level BPE tokenizer with nanochat's
                special tokens.
        """
        path = folder / TOKENIZER_FILE
        try:
            stored = parse_json(read_regular(path, _MOST_BYTES))
            ranks, pattern, special = files.tokenizer_from_json(stored)
            fault = vocabulary_fault(ranks, special)
            tokenizer = None if fault else cls(ranks, pattern, special)
        except FileNotFoundError:
            raise NotFound(
                f"There is no tokenizer: {path} does not exist.",
                f"Train one: {command('tokenizer train')}",
            ) from None
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {reason_of(error)}.",
                "Check the file's type and permissions.",
            ) from error
        except _NOT_A_TOKENIZER as error:
            raise DataError(
                f"{path} is not a byte-level BPE tokenizer ({type(error).__name__}: {error}).",
                _RETRAIN,
            ) from error
        if tokenizer is None:
            raise DataError(f"{path} {fault}.", _RETRAIN)
        return tokenizer

    def save(self, folder: Path, conversational: bool = False) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` into an existing folder.

        Args:
            folder: an existing folder.
            conversational: whether to add the chat template, whose presence says that the model
                was trained on conversations.
        """
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": ASSISTANT_END,
            "clean_up_tokenization_spaces": False,
        }
        if conversational:
            config["chat_template"] = CHAT_TEMPLATE
        stored = files.tokenizer_to_json(self.ranks, self.pattern, self.special_tokens)
        (folder / TOKENIZER_FILE).write_text(json.dumps(stored, ensure_ascii=False), "utf-8")
        (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=2), "utf-8")

    # ==================== Vocabulary ====================

    @property
    def vocab_size(self) -> int:
        """The number of tokens, including the special ones."""
        return len(self.ranks) + len(self.special_tokens)

    @property
    def bos(self) -> int:
        """The id of ``<|bos|>``, which begins every document."""
        return self.special_tokens[BOS]

    def special(self, name: str) -> int:
        """Return the id of a special token, such as ``<|user_start|>``.

        Raises:
            KeyError: there is no such special token.
        """
        return self.special_tokens[name]

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; empty for a special token."""
        return self._bytes.get(token, b"")

    def byte_lengths(self) -> list[int]:
        """Return the number of bytes of every token, by id; 0 for special tokens."""
        return [len(self.token_bytes(token)) for token in range(self.vocab_size)]

    # ==================== Encoding and decoding ====================

    def encode(self, text: str) -> list[int]:
        """Encode a text. Special tokens in it are encoded as plain text.

        >>> tokenizer = Tokenizer.train([""], vocab_size=265)  # bytes only
        >>> tokenizer.encode("cow")
        [99, 111, 119]
        >>> len(tokenizer.encode("<|bos|>"))  # the seven characters, not the special token
        7
        """
        with safeguards.panics_as_errors():
            if len(text) < safeguards.LONG_RUN:
                return self._encoding.encode_ordinary(text)
            ids: list[int] = []
            for part, blank in safeguards.split_blanks(text):
                if blank:
                    ids += self._encoding._encode_single_piece(part)
                else:
                    ids += self._encoding.encode_ordinary(part)
            return ids

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Decode ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: the ids.
            keep_special: write special tokens by their names, such as ``<|bos|>``, as nanochat
                does; else they are left out.

        >>> tokenizer = Tokenizer.train([""], vocab_size=265)
        >>> tokenizer.decode([tokenizer.bos, 99, 111, 119])
        'cow'
        """
        names = self._names if keep_special else {}
        return b"".join(names.get(token, self.token_bytes(token)) for token in ids).decode(
            "utf-8", "replace"
        )

    def encode_documents(self, documents: Sequence[Document], threads: int) -> list[list[int]]:
        """Encode each document, beginning with ``<|bos|>``.

        Args:
            documents: texts and conversations.
            threads: the number of threads that encode texts.

        Raises:
            DataError: as `render`.
        """
        texts = [document for document in documents if isinstance(document, str)]
        with ThreadPoolExecutor(threads) as pool:
            encoded = iter(list(pool.map(self.encode, texts)))
        return [
            [self.bos, *next(encoded)] if isinstance(document, str) else self.render(document)[0]
            for document in documents
        ]

    def render(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Encode a conversation for training.

        Returns:
            The ids, and a mask of the same length: 1 for the tokens that the assistant learns to
            produce (its text, its Python and their end tokens), 0 for all others, among them the
            output of Python and parts that are not to be learned.

        Raises:
            DataError: user and assistant do not take turns, beginning with the user.

        >>> from mlxchat.tokenizer.messages import Conversation, Message
        >>> tokenizer = Tokenizer.train([""], vocab_size=265)
        >>> ids, mask = tokenizer.render(
        ...     Conversation((Message("user", "Hi"), Message("assistant", "Moo")))
        ... )
        >>> len(ids), sum(mask)  # learned: three letters and the end of the message
        (10, 4)
        """
        ids, mask = [self.bos], [0]
        for message in conversation.turns():
            for segment, learned in self._segments(message):
                ids += segment
                mask += [learned] * len(segment)
        return ids, mask

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """Encode a conversation for the assistant to answer, ending with ``<|assistant_start|>``.

        Raises:
            DataError: as `render`, or the last message is the assistant's.
        """
        ids, _mask = self.render(conversation)
        if ids[-1] == self.special(ASSISTANT_END):
            raise DataError(
                "The conversation to complete ends with an answer.",
                "End it with a message from the user.",
            )
        return [*ids, self.special("<|assistant_start|>")]

    def _segments(self, message: Message) -> Iterator[tuple[list[int], int]]:
        """Yield the ids of each piece of a message, with its value in the mask."""
        learned = int(message.role == "assistant")
        yield [self.special(f"<|{message.role}_start|>")], 0
        for part in message.parts:
            ids, learned = self.encode(part.text), int(message.role == "assistant" and part.learned)
            if part.type == "text":
                yield ids, learned
            elif part.type == "python":
                yield self._enclosed("python", ids), learned
            else:
                yield self._enclosed("output", ids), 0
        yield [self.special(f"<|{message.role}_end|>")], learned  # as what it ends

    def _enclosed(self, name: str, ids: list[int]) -> list[int]:
        return [self.special(f"<|{name}_start|>"), *ids, self.special(f"<|{name}_end|>")]


def vocabulary_fault(ranks: dict[bytes, int], special: dict[str, int]) -> str | None:
    """Describe what is wrong with a vocabulary, such as "has no token for the byte 0".

    Check a vocabulary from a file with it before making a `Tokenizer`: for some faults tiktoken
    would end the process.

    Returns:
        The rest of a sentence that begins with the file's name; None if the vocabulary is usable.
    """
    ids = [*ranks.values(), *special.values()]
    if any(type(token) is not int for token in ids) or sorted(ids) != list(range(len(ids))):
        return f"has ids that are not 0 to {len(ids) - 1:,}, each once"
    if missing := [token for token in SPECIAL_TOKENS if token not in special]:
        return f"lacks the special tokens {', '.join(missing)}"
    if unknown := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        return f"has no token for the byte {unknown[0]}"
    if b"" in ranks:
        return "has an empty token"
    return None
