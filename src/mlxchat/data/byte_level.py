"""The file of a byte-level BPE tokenizer, in the form that `tokenizers` reads. Pure."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

Ranks = dict[bytes, int]  # of each token, which is its id and the order of merging


def to_json(ranks: Ranks, pattern: str, special: dict[str, int]) -> dict[str, Any]:
    """The form of Hugging Face's `tokenizers`: byte-level BPE, every byte a visible letter."""
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


def from_json(stored: Any) -> tuple[Ranks, str, dict[str, int]]:
    """Ranks, split pattern and special tokens of what `to_json` made.

    Raises:
        ValueError, KeyError, IndexError, TypeError, AttributeError: it is something else.
    """
    pattern = stored["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    special = {token["content"]: token["id"] for token in stored["added_tokens"]}
    ranks = {
        bytes(_byte_of()[letter] for letter in token): rank
        for token, rank in stored["model"]["vocab"].items()
        if token not in special
    }
    return ranks, pattern, special


def _merges(ranks: Ranks) -> Iterator[tuple[bytes, bytes]]:
    """The pair that each token of several bytes was merged from, in order of rank."""
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
    """GPT-2's visible letter for each byte: itself where printable, else one from U+0100 on."""
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
