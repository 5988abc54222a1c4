"""The contents of tokenizer.json and of tokenizer_config.json's chat template. Pure.

tokenizer.json has the form of Hugging Face's `tokenizers`: a byte-level BPE. That form can express
more than ranks, a split pattern and special tokens; a file that does is refused, as its text would
be encoded as other ids here.

`CHAT_TEMPLATE` is a Jinja template that transformers and mlx-lm run. It renders and refuses the
same conversations as `Tokenizer.render`, except that special tokens in a text stay special, and
that user and system messages may have text parts too.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, Field, StrictInt, ValidationError

Ranks = dict[bytes, int]  # each token's id, which is also its rank in merging

# nanochat's, GPT-4's and what lies between: these match every character of every text, each match
# at least one, and do not backtrack far. Of others tiktoken drops text, or ends with a panic.
_PATTERN = re.compile(
    re.escape(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,DIGITS}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ).replace("DIGITS", "[1-9]")
)


class _Pattern(BaseModel):
    regex: str = Field(alias="Regex")


class _Split(BaseModel):
    type: Literal["Split"]
    pattern: _Pattern
    behavior: Literal["Isolated"]
    invert: Literal[False]


class _ByteLevel(BaseModel):
    type: Literal["ByteLevel"]
    add_prefix_space: Literal[False]
    use_regex: Literal[False]


class _Sequence(BaseModel):
    type: Literal["Sequence"]
    pretokenizers: tuple[_Split, _ByteLevel]


class _Special(BaseModel):
    id: StrictInt
    content: str
    special: Literal[True]


class _Model(BaseModel):
    type: Literal["BPE"]
    dropout: None = None
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None
    ignore_merges: bool = False
    vocab: dict[str, StrictInt]
    merges: list[str | tuple[str, str]]  # older files have "a b" in place of ["a", "b"]


class _File(BaseModel):
    """The fields of a file that determine ids; all others are ignored."""

    added_tokens: list[_Special]
    normalizer: None = None
    pre_tokenizer: _Sequence
    model: _Model


def tokenizer_to_json(ranks: Ranks, pattern: str, special: dict[str, int]) -> dict[str, Any]:
    """Return tokenizer.json's contents: byte-level BPE with every byte as a visible letter."""
    visible = {token: _visible(token) for token in ranks}
    vocabulary = {visible[token]: rank for token, rank in ranks.items()}
    merges = [[visible[left], visible[right]] for left, right in _merges(ranks)]
    added = [
        {
            "id": token_id,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token_id in special.items()
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary | special,
            "merges": merges,
        },
    }


def tokenizer_from_json(stored: Any) -> tuple[Ranks, str, dict[str, int]]:
    """Return the ranks, split pattern and special tokens of tokenizer.json's contents.

    They may still not be a usable vocabulary (`bpe.vocabulary_fault`): ids may be missing or occur
    twice.

    Raises:
        ValueError: the contents have another form, or encode text as other ids; the fault is named.
    """
    try:
        file = _File.model_validate(stored)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"][:4]))
        raise ValueError(f"{where:.99}: {fault['msg']}") from error
    special = {token.content: token.id for token in file.added_tokens}
    ranks = {
        _bytes(token): rank for token, rank in file.model.vocab.items() if token not in special
    }
    pattern = file.pre_tokenizer.pretokenizers[0].pattern.regex
    require_pattern(pattern)
    _require_merges(file.model, ranks)
    return ranks, pattern, special


def require_pattern(pattern: str) -> None:
    """Check that a split pattern is one of those known to cover every text.

    Raises:
        ValueError: it is not.
    """
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(f"text is not split as in nanochat, but by {pattern!a:.60}")


def _require_merges(model: _Model, ranks: Ranks) -> None:
    """Check that a file's merges have the effect of merging by rank.

    A token may have several merges: by rank, all pairs that form it are merged.
    """
    listed = []
    for merge in model.merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        listed.append((_bytes(left), _bytes(right)))
    order = [ranks.get(left + right, -1) for left, right in listed]
    if -1 in order or order != sorted(order):
        raise ValueError("merges are not in the order of the ids they produce")
    following = set(_merges(ranks))
    if not following <= set(listed):
        raise ValueError("merges do not match the ids")
    if not model.ignore_merges and len(following) < sum(len(token) > 1 for token in ranks):
        raise ValueError("there are tokens that no merge produces")


def _merges(ranks: Ranks) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pair that each token of several bytes was merged from, in order of rank."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(pairs)
            if best >= rank:
                break
            i = pairs.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


@cache
def _letter_of() -> dict[int, str]:
    """Map each byte to GPT-2's visible letter: itself if printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return letters


@cache
def _byte_of() -> dict[str, int]:
    return {letter: byte for byte, letter in _letter_of().items()}


def _visible(token: bytes) -> str:
    letters = _letter_of()
    return "".join(letters[byte] for byte in token)


def _bytes(token: str) -> bytes:
    letters = _byte_of()
    try:
        return bytes(letters[letter] for letter in token)
    except KeyError as error:
        raise ValueError(
            f"a token has the letter {error.args[0]!a}, which stands for no byte"
        ) from error


CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- set ns = namespace(lead='', text='', turns=0) -%}"
    "{%- for message in messages -%}"
    "{%- set name = 'Message ' ~ loop.index ~ ' of the conversation' -%}"
    "{%- set role, content = message['role'], message.get('content') -%}"
    "{%- set leads = loop.first and role == 'system' -%}"
    "{%- set expected = 'system' if leads else ['user', 'assistant'][ns.turns % 2] -%}"
    "{%- if role != expected -%}"
    "{{- raise_exception(name ~ ' has the role ' ~ role ~ ', not ' ~ expected ~ ': user and '"
    " ~ 'assistant take turns, the user first; a system message may lead.') -}}"
    "{%- endif -%}"
    "{%- if content is mapping or content is not iterable -%}"
    "{{- raise_exception(name ~ ' has neither text nor parts.') -}}"
    "{%- endif -%}"
    "{%- set ns.text = '' -%}"
    "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}"
    "{%- if part is not mapping or part['text'] is not string -%}"
    "{{- raise_exception(name ~ ' has a part of type ' ~ part['type'] ~ ', without text.') -}}"
    "{%- elif part['type'] == 'text' -%}"
    "{%- set ns.text = ns.text + part['text'] -%}"
    "{%- elif part['type'] == 'python' and role == 'assistant' -%}"
    "{%- set ns.text = ns.text + '<|python_start|>' + part['text'] + '<|python_end|>' -%}"
    "{%- elif part['type'] == 'python_output' and role == 'assistant' -%}"
    "{%- set ns.text = ns.text + '<|output_start|>' + part['text'] + '<|output_end|>' -%}"
    "{%- else -%}"
    "{{- raise_exception(name ~ ' has a part of type ' ~ part['type'] ~ '.') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if leads -%}"
    "{%- set ns.lead = ns.text + '\n\n' -%}"
    "{%- else -%}"
    "{{- '<|' + role + '_start|>' + ns.lead + ns.text + '<|' + role + '_end|>' -}}"
    "{%- set ns.lead = '' -%}"
    "{%- set ns.turns = ns.turns + 1 -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if ns.turns == 0 -%}"
    "{{- raise_exception('The conversation has no message from a user.') -}}"
    "{%- endif -%}"
    "{%- if add_generation_prompt -%}"
    "{%- if ns.turns % 2 == 0 -%}"
    "{{- raise_exception('The conversation to complete ends with an answer.') -}}"
    "{%- endif -%}"
    "{{- '<|assistant_start|>' -}}"
    "{%- endif -%}"
)
