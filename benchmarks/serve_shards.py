"""Serve a folder of shards as the hub would, to try ``data fetch`` and ``train --streaming``.

    python benchmarks/serve_shards.py FOLDER --port 8000
    mlxchat data fetch --num-shards 4 --endpoint http://127.0.0.1:8000

The folder's last shard answers as the dataset's last one, which is validation; the others stand for
all of its training shards, over and over, so that a run can go through the whole dataset.
"""

import argparse
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.hub_server import HubServer, address

from mlxchat.data.shards import DATASETS, shard_name


def addresses(folder: Path) -> dict[str, Path]:
    """The path of every shard of fineweb-edu, with the file of ``folder`` that stands for it."""
    *training, validation = sorted(folder.glob("shard_*.parquet"))
    dataset = DATASETS["fineweb-edu"]
    shards = [training[index % len(training)] for index in range(dataset.last_shard)]
    return {
        address(dataset, shard_name(index)): file
        for index, file in enumerate([*shards, validation])
    }


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--bytes-per-second", type=float, default=float("inf"))
    arguments = parser.parse_args()
    files = addresses(arguments.folder)
    with HubServer(files, arguments.port, arguments.bytes_per_second) as server:
        print(f"serving {arguments.folder} at {server.endpoint}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
