"""A row of each task's files, and a small model to answer them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from mlx.utils import tree_map

from mlxchat.ckpt import layout
from mlxchat.ckpt.layout import SavedModel
from mlxchat.data.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from mlxchat.evaluate.tasks import catalog
from mlxchat.model.config import Architecture, GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx

BYTES = Tokenizer(
    {bytes([i]): i for i in range(256)},
    SPLIT_PATTERN,
    {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
)
ARC = {
    "id": "Q1",
    "question": "What do cows eat?",
    "choices": {"text": ["grass", "stones", "clouds"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
MMLU = {"question": "2 + 2", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 3}
GSM8K = {"question": "How many?", "answer": "1,200 + 34 = <<1200+34=1234>>1234\n#### 1,234"}
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef twice(x: int) -> int:\n    import os\n",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}


def fill(root: Path, task: str, *rows: dict) -> Path:
    folder = root / catalog.FILES[task][0]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "00000.parquet")
    return folder


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
    """The directory of a model, as a saved step is one."""
    folder.mkdir()
    layout.write_model(folder, saved.model, saved.tokenizer, conversational)
    return folder
