"""Measures a model for `recipes.py`: bits per byte of validation text, and what it writes.

    python benchmarks/recipe_judge.py HOME SHARDS BYTES

Prints, as JSON, what `judge` returns of the run in a home; SHARDS is the folder of the data, and
BYTES how much of its validation text counts.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rounds

import mlxchat
from mlxchat.data.documents import ShardDocuments
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.data.shards import LocalShards
from mlxchat.errors import MlxchatError
from mlxchat.evaluate.answers import by_length, padded
from mlxchat.evaluate.loss import bits_per_byte
from mlxchat.model.size import flops_per_token
from mlxchat.telemetry.events import Evaluated, Evaluating
from mlxchat.tokenizer.bpe import Tokenizer
from mlxchat.ui.console import Screen

TAG = "run"  # of every run, in its own home
PROMPTS = ("Once upon a time, there was a little", "The city is known for")
SAMPLE_TOKENS = 60


def main() -> None:
    """Measure and print."""
    home, shards, limit = sys.argv[1:]
    print(json.dumps(judge(Path(home), Path(shards), int(limit))))


def judged(home: Path, shards: Path, limit: int) -> dict[str, Any]:
    """Return what `judge` does, of a process that leaves this machine's memory when it ends.

    Raises:
        MlxchatError: it failed; its own words are on standard error.
    """
    command = [sys.executable, __file__, str(home), str(shards), str(limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise MlxchatError(f"The model in {home} cannot be measured.", "Why not is said above.")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def judge(home: Path, shards: Path, limit: int) -> dict[str, Any]:
    """Return a model's shape, its bits per byte of validation text, and what it writes."""
    model = mlxchat.load(TAG, home=home)
    texts = validation_texts(ShardDocuments(LocalShards(shards)), limit)
    batches = laid_out(texts, model.tokenizer, model.config.sequence_len)
    with Screen(stream=sys.stderr) as screen:
        for event in bits_per_byte(model.network.losses, batches, len(batches), model.tokenizer):
            if isinstance(event, Evaluating):
                screen.show(event)
    assert isinstance(event, Evaluated)
    return {
        "vocab_size": model.config.vocab_size,
        "depth": model.config.n_layer,
        "width": model.config.n_embd,
        "context": model.config.sequence_len,
        "flops_per_token": flops_per_token(model.config),
        "bits_per_byte": event.bits_per_byte,
        "validation_tokens": event.tokens,
        "samples": {
            prompt: model.generate(prompt, max_tokens=SAMPLE_TOKENS, temperature=0)
            for prompt in PROMPTS
        },
    }


def laid_out(texts: Iterable[str], tokenizer: Tokenizer, context: int) -> list[Batch]:
    """Return batches in which each token of the texts is predicted once.

    Rows are pieces of at most ``context`` tokens, each after <|bos|>, as rows begin in training.
    """
    pieces = [
        ids[start : start + context]
        for ids in map(tokenizer.encode, texts)
        for start in range(0, len(ids), context)
    ]
    return [
        Batch(
            padded([[tokenizer.bos, *pieces[index][:-1]] for index in group], tokenizer.bos),
            padded([pieces[index] for index in group], -1),
            LoaderState(),
        )
        for group in by_length([len(piece) for piece in pieces])
    ]


def size(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text.encode())


def validation_texts(documents: ShardDocuments, limit: int) -> list[str]:
    """Return the first validation documents, of at most ``limit`` bytes unless one has more."""
    texts: list[str] = []
    left = limit
    for batch, _ in documents.validation():
        for document in batch:
            text = str(document)
            left -= size(text)
            if texts and left < 0:
                return texts
            texts.append(text)
    return texts


if __name__ == "__main__":
    rounds.explain(main)
