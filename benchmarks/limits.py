"""The same run within 0.5, 1 and 2 times the memory of all rows at once: held, and the same?

    python benchmarks/limits.py FOLDER --depth 4 --vocab-size 4096 --max-seq-len 512

Trains three steps of 16,384 tokens on a folder of shards, with an evaluation and a checkpoint, by
`mlxchat train` in processes and a home of their own; prints peaks of MLX's allocator, and by how
much losses and bits per byte differ from those without a limit.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import rounds

from mlxchat.errors import MlxchatError

SHARES = (0.5, 1.0, 2.0)
TOKENS = 16_384  # in a step
MIB = 2**20


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--max-seq-len", type=int, default=512)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        free = trained(given, home, None)
        rows = [row("none", free, free)]
        for share in SHARES:
            limit = f"{share * free['peak'] / MIB:.0f}MiB"
            rows.append(row(f"{share:g} times, {limit}", trained(given, home, limit), free))
    print(rounds.table(rows))


def trained(given: argparse.Namespace, home: str, limit: str | None) -> dict[str, Any]:
    """What a run came to."""
    rows = TOKENS // given.max_seq_len
    command = ["mlxchat", "train", "--json", "--fresh", "--model-tag", "run"]
    command += ["--data-dir", str(given.folder), "--depth", str(given.depth)]
    command += ["--vocab-size", str(given.vocab_size), "--max-seq-len", str(given.max_seq_len)]
    command += ["--total-batch-size", str(TOKENS), "--num-iterations", "3", "--sample-every", "0"]
    command += ["--memory-limit", limit] if limit else ["--device-batch-size", str(rows)]
    environment = {**os.environ, "MLXCHAT_HOME": home}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise MlxchatError("A run ended early.", "What it said of it is above.")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    learnt = [step["loss"] for step in steps]
    learnt += [event["bits_per_byte"] for event in events if event["event"] == "evaluation"]
    notes = [event["text"] for event in events if event["event"] == "note"]
    return {
        "computed": next(note for note in notes if " rows of " in note).split("(")[1].split(")")[0],
        "estimate": next(e for e in events if e["event"] == "started")["estimated_memory"],
        "peak": steps[-1]["memory"]["peak"],
        "learnt": learnt,
    }


def row(name: str, run: dict[str, Any], free: dict[str, Any]) -> dict[str, str]:
    """A line of the table."""
    pairs = zip(run["learnt"], free["learnt"], strict=True)
    return {
        "limit": name,
        "computed": run["computed"],
        "estimate, MiB": f"{run['estimate'] / MIB:,.0f}",
        "peak, MiB": f"{run['peak'] / MIB:,.0f}",
        "largest difference": f"{max(abs(a - b) / b for a, b in pairs):.1e}",
    }


if __name__ == "__main__":
    rounds.explain(main)
