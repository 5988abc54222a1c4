"""A home with the runs that quickstart leaves, of a model that takes a second to train."""

import json
from pathlib import Path

import pytest

import mlxchat
from mlxchat.home import Home
from support.adapted import adapter_run
from support.core_bundle import made_bundle

TINY = {
    "depth": 1,
    "dataset": "builtin",
    "vocab_size": 300,
    "max_seq_len": 128,
    "device_batch_size": 2,
    "total_batch_size": 256,
    "num_iterations": 4,
    "eval_tokens": 256,
    "sample_every": 0,
    "save_every": 2,
}
TUNING = {
    "source": "quickstart",
    "num_iterations": 2,
    "total_batch_size": 256,
    "eval_every": 0,
    "sample_every": 0,
}


def small_runs(home: Path, folder: Path) -> None:
    """Train ``quickstart`` and ``quickstart-sft``; ``quickstart-style`` has a random adapter.

    ``chats.jsonl`` and ``eval_bundle`` go into ``folder``.
    """
    made_bundle(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXCHAT_HOME", str(home))
        list(mlxchat.pretrain(**TINY, model_tag="quickstart"))
        place = Home(home)
        adapter_run(place, place.runs / "quickstart" / "step_000004", "quickstart-style")
        list(mlxchat.fine_tune(**TUNING, data=[str(chats(folder))]))


def chats(folder: Path) -> Path:
    """Write a file of conversations."""
    said = [("What does a {} say?", "A {} says moo."), ("Who says moo?", "The {} does.")]
    rows = [
        {"prompt": asked.format(f"cow {number}"), "completion": answer.format(f"cow {number}")}
        for number in range(50)
        for asked, answer in said
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
