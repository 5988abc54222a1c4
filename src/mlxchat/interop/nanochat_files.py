"""nanochat's files: the layout of its checkpoints, and its pickled tokenizer.

    base_checkpoints/d20/model_021400.pt meta_021400.json optim_021400_rank0.pt
    mid_checkpoints/...  chatsft_checkpoints/...  chatrl_checkpoints/...
    tokenizer/tokenizer.pkl token_bytes.pt

Source: nanochat/checkpoint_manager.py and scripts/tok_train.py at commits dfc8833 and 92d63d4.

``tokenizer.pkl`` is a pickled ``tiktoken.Encoding`` with a name, a split pattern, ranks and special
tokens; it is read without running it (`pickles`).
"""

import pickle
from pathlib import Path

import tiktoken
from pydantic import BaseModel, ConfigDict, ValidationError

from mlxchat.checkpoint.files import damaged, refused, unreadable
from mlxchat.interop import pickles
from mlxchat.interop.pickles import Function, Instance
from mlxchat.tokenizer import files
from mlxchat.tokenizer.bpe import Tokenizer, vocabulary_fault

BASE = "base_checkpoints"
CHAT = "chatsft_checkpoints"
CONVERSATIONAL = (CHAT, "mid_checkpoints", "chatrl_checkpoints")  # trained on conversations

TOKENIZER_FOLDER = "tokenizer"  # beside the folders of checkpoints
TOKENIZER = "tokenizer.pkl"
TOKEN_BYTES = "token_bytes.pt"

FIELDS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
WINDOWS_FIELD = "window_pattern"  # a field since the era with short windows


def model_file(step: int) -> str:
    """Return the name of the file with a step's tensors."""
    return f"model_{step:06d}.pt"


def meta_file(step: int) -> str:
    """Return the name of the JSON file that describes a step's model."""
    return f"meta_{step:06d}.json"


ENCODING_NAME = "rustbpe"  # nanochat gives it to every encoding
PROTOCOL = 4  # of nanochat's pickles


class _Encoding(BaseModel):
    """The state of a ``tiktoken.Encoding``."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: str
    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.pkl``.

    Raises:
        CheckpointError: the file cannot be read, is damaged, asks for something other than data
            (which is named), or is not a tokenizer of nanochat's.
    """
    try:
        with path.open("rb") as file:
            data = file.read(pickles.MOST_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    value = pickles.read_pickle(data, path, {("tiktoken.core", "Encoding"): Function(_instance)})
    if not isinstance(value, Instance):
        raise damaged(path, "no tiktoken encoding")
    if isinstance(value.state, str):
        raise refused(path, "it is the name of a tiktoken encoding, not a tokenizer")
    try:
        encoding = _Encoding.model_validate(value.state)
        if reason := vocabulary_fault(encoding.mergeable_ranks, encoding.special_tokens):
            raise damaged(path, f"it {reason}")
        files.require_pattern(encoding.pat_str)
        return Tokenizer(encoding.mergeable_ranks, encoding.pat_str, encoding.special_tokens)
    except ValidationError as error:
        fault = error.errors()[0]
        field = "".join(str(key) for key in fault["loc"][:1])
        raise damaged(path, f"the encoding's {field!r:.99}: {fault['msg']}") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a ``tokenizer.pkl`` that nanochat reads. The same tokenizer makes the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    encoding = tiktoken.Encoding(
        ENCODING_NAME,
        pat_str=tokenizer.pattern,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )
    path.write_bytes(pickle.dumps(encoding, PROTOCOL))


def _instance(arguments: tuple[object, ...]) -> Instance:
    if arguments:
        raise ValueError("an encoding made of something")
    return Instance()
