"""Train the classic and the modern architecture for the same time, and compare.

    python benchmarks/architectures.py FOLDER --minutes 10

FOLDER holds shard_*.parquet, the last for validation. Each architecture first takes some steps for
its speed; then it trains anew with as many steps as the time allows, its schedule made for them.
Prints a table of validation bits per byte (lower is better) along the way.

The modern recipe scales its rates down for a small batch; it is also trained with those of its
reference batch, of 2^19 tokens.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mlxchat.optim.schedule import REFERENCE_BATCH

RATES = {"embedding-lr": 0.3, "unembedding-lr": 0.008, "matrix-lr": 0.02, "scalar-lr": 0.5}
WEIGHT_DECAY = 0.28
PROBE_STEPS = 12
WARM_UP = 3  # steps that are not counted
EVALUATIONS = 5


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--device-batch-size", type=int, default=8)
    parser.add_argument("--total-batch-size", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=42)
    given = vars(parser.parse_args())
    folder, seconds = given.pop("folder"), 60 * given.pop("minutes")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    options += [f"--data-dir={folder}", "--sample-every=0", "--save-every=0"]
    with tempfile.TemporaryDirectory() as home:
        runs = {
            name: _train(Path(home), re.sub(r"\W+", "-", name), [*options, *own], seconds)
            for name, own in _compared(given["total_batch_size"]).items()
        }
    print(f"| share of {seconds / 60:g} minutes | {' | '.join(runs)} |")
    print("|---|" + "---|" * len(runs))
    rows = zip(*(_bits(events) for events in runs.values()), strict=True)
    for i, bits in enumerate(rows):
        print(f"| {i / EVALUATIONS:.0%} | {' | '.join(f'{value:.4f}' for value in bits)} |")
    for name, fact in (
        ("steps", lambda events: f"{_steps(events)[-1]['step']:,}"),
        ("tokens/s", lambda events: f"{_tokens_per_second(events):,.0f}"),
        ("minutes of steps", lambda events: f"{_time(events) / 60:.1f}"),
        ("parameters", lambda events: f"{events[0]['parameters']:,}"),
    ):
        print(f"| {name} | {' | '.join(fact(events) for events in runs.values())} |")


def _compared(total_batch_size: int) -> dict[str, list[str]]:
    """What is trained, by name, and the options that make it so."""
    factor = math.sqrt(REFERENCE_BATCH / total_batch_size)  # undoes the scaling by the batch
    unscaled = {name: factor * rate for name, rate in RATES.items()}
    unscaled["weight-decay"] = WEIGHT_DECAY / factor  # its product with the matrices' rate stays
    return {
        "classic": ["--arch=classic"],
        "modern": ["--arch=modern"],
        "modern, rates not scaled": [
            "--arch=modern",
            *(f"--{name}={value:.6g}" for name, value in unscaled.items()),
        ],
    }


def _train(home: Path, tag: str, options: list[str], seconds: float) -> list[dict[str, Any]]:
    probe = _events(home, f"probe-{tag}", [*options, "--eval-every=0"], PROBE_STEPS)
    each = statistics.median(step["seconds"] for step in _steps(probe)[WARM_UP:])
    total = max(1, round(seconds / each / EVALUATIONS)) * EVALUATIONS
    return _events(home, tag, [*options, f"--eval-every={total // EVALUATIONS}"], total)


def _events(home: Path, tag: str, options: list[str], steps: int) -> list[dict[str, Any]]:
    command = ["mlxchat", "train", f"--model-tag={tag}", *options]
    subprocess.run(
        [*command, f"--num-iterations={steps}", "--json"],
        env={**os.environ, "MLXCHAT_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    log = home / "logs" / tag / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def _steps(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "step"]


def _time(events: list[dict[str, Any]]) -> float:
    return float(sum(step["seconds"] for step in _steps(events)))


def _tokens_per_second(events: list[dict[str, Any]]) -> float:
    return float(events[0]["tokens_per_step"] * len(_steps(events)) / _time(events))


def _bits(events: list[dict[str, Any]]) -> list[float]:
    return [event["bits_per_byte"] for event in events if event["event"] == "evaluation"]


if __name__ == "__main__":
    main()
