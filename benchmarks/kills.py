"""Kill a run again and again, and compare what it ends with to an undisturbed one.

    python benchmarks/kills.py FOLDER --kills 12

FOLDER holds shard_*.parquet. Trains depth 2 for 120 steps, saving every 7, once straight and once
with a SIGKILL up to two seconds after the first step of each start; then says whether weights,
optimizer and loader are equal byte for byte and whether every step was logged once.
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

TRAIN = (
    "mlxchat train --depth 2 --vocab-size 1024 --max-seq-len 128 --total-batch-size 2048 "
    "--device-batch-size 8 --num-iterations 120 --save-every 7 --eval-every 20 "
    "--eval-tokens 8192 --sample-every 0 --json --data-dir"
).split()
FILES = ("model.safetensors", "optimizer.safetensors", "loader.safetensors")


def run(folder: Path, home: str, pause: float | None = None) -> int:
    """Train, to the end or killed ``pause`` seconds after the first step; the exit status."""
    process = subprocess.Popen(
        [*TRAIN, str(folder)],
        env={**os.environ, "MLXCHAT_HOME": home},
        stdout=subprocess.PIPE,
        text=True,
    )
    if pause is not None and process.stdout is not None:
        for line in process.stdout:
            if '"event": "step"' in line:
                break
        time.sleep(pause)
        process.kill()
    process.communicate()
    return process.returncode


def main() -> None:
    """Run it and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as straight, tempfile.TemporaryDirectory() as killed:
        run(given.folder, straight)
        codes = [run(given.folder, killed, moments.uniform(0, 2)) for _ in range(given.kills)]
        run(given.folder, killed)
        print(f"{sum(code < 0 for code in codes)} of {given.kills} starts were killed")
        for name in FILES:
            ends = [
                Path(home, "base_checkpoints", "d2", "step_000120", name).read_bytes()
                for home in (straight, killed)
            ]
            print(f"{name}: {'equal' if ends[0] == ends[1] else 'DIFFERENT'}")
        log = Path(killed, "logs", "d2", "metrics.jsonl").read_text().splitlines()
        steps = [event["step"] for event in map(json.loads, log) if event["event"] == "step"]
        print(f"every step logged once: {steps == list(range(1, 121))}")


if __name__ == "__main__":
    main()
