"""Small models of random weights, and a tokenizer of bytes."""

from pathlib import Path

from mlx.utils import tree_map

from mlxchat.checkpoint import layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer.bpe import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

BYTES = Tokenizer(
    {bytes([i]): i for i in range(256)},
    SPLIT_PATTERN,
    {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
)


def network(sequence_len: int = 512, arch: Architecture = "classic", seed: int = 1) -> SavedModel:
    """A small network with random weights, none of them zero; modern ones have a window of 128."""
    config = GPTConfig(
        arch=arch, sequence_len=sequence_len, vocab_size=BYTES.vocab_size, n_layer=2, n_head=2,
        n_kv_head=1, n_embd=32, window_pattern="L" if arch == "classic" else "S",
    )  # fmt: skip
    model, key = GPT(config), iter(mx.random.split(mx.random.key(seed), 64))
    model.update(tree_map(lambda w: mx.random.normal(w.shape, key=next(key)), model.parameters()))
    return SavedModel(model, BYTES, conversational=True)


def saved_in(folder: Path, saved: SavedModel, conversational: bool = True) -> Path:
    """The directory of a model, as a checkpoint is one."""
    folder.mkdir()
    layout.write_model(folder, saved.model, saved.tokenizer, conversational)
    return folder
