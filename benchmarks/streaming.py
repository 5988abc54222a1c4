"""Train depth 4 from nothing over HTTP with two cached shards, then ask the model.

    python benchmarks/streaming.py FOLDER

FOLDER holds shard_*.parquet, the last for validation; it is served as the hub would serve it.
Prints the validation bits per byte as training goes on, how long it took, and the most training
shards (unfinished ones included) that were ever on disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from serve_shards import addresses
from support.hub_server import HubServer

TRAIN = (
    "train --depth 4 --streaming --max-cached-shards 2 --vocab-size 4096 --max-seq-len 512 "
    "--total-batch-size 8192 --device-batch-size 8 --eval-every 100 --sample-every 0"
)


class ShardWatch(threading.Thread):
    """Counts the training shards in a folder again and again."""

    def __init__(self, folder: Path, validation: str) -> None:
        super().__init__(daemon=True)
        self.folder, self.validation, self.most = folder, validation, 0
        self.start()

    def run(self) -> None:
        """Look ten times a second until the process ends."""
        while True:
            names = {path.name.split(".")[0] for path in self.folder.rglob("shard_*")}
            self.most = max(self.most, len(names - {self.validation.split(".")[0]}))
            time.sleep(0.1)


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-iterations", type=int, default=600)
    arguments = parser.parse_args()
    with (
        HubServer(addresses(arguments.folder)) as server,
        tempfile.TemporaryDirectory() as home,
    ):
        environment = {**os.environ, "MLXCHAT_HOME": home}
        watch = ShardWatch(Path(home) / "base_data", "shard_01822.parquet")
        command = ["mlxchat", *TRAIN.split(), "--endpoint", server.endpoint]
        begun = time.monotonic()
        subprocess.run(
            [*command, "--num-iterations", str(arguments.num_iterations), "--json"],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.monotonic() - begun
        for line in (Path(home) / "logs" / "d4" / "metrics.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "evaluation":
                print(f"step {event['step']}: {event['bits_per_byte']:.4f} bits per byte")
        print(f"{seconds / 60:.1f} minutes in all")
        print(f"{watch.most} training shards on disk at most")
        prompt = "Once upon a time there was a little girl"
        subprocess.run(["mlxchat", "chat", "-p", prompt], env=environment, check=True)


if __name__ == "__main__":
    main()
