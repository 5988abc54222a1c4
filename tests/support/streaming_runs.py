"""A streamed dataset read by a process that is killed again and again, over a bad network.

    python -m support.streaming_runs ENDPOINT FOLDER LOG

reads documents through a few cached shards and appends them to LOG, each line with the cursor after
it, as a trainer would save them. Where a log exists, it resumes after the last whole line.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from mlxchat.data import streaming
from mlxchat.data.documents import Cursor, ShardDocuments
from mlxchat.data.hub import Hub
from mlxchat.data.shards import STREAMED, Dataset, LocalShards
from mlxchat.data.streaming import StreamingShards
from support.hub_server import Fault, HubServer, dataset_files
from support.places import TESTS

FORTY = Dataset("forty", "someone/forty", last_shard=40, licence_note="CC0")
CACHED = 3
END = Cursor(epoch=2, shard=4)  # where reading ends, so that the order begins again
TIMEOUT = 0.3  # seconds that the client waits for a byte

Read = tuple[list[str], Cursor]


def until_end(reads: Iterator[tuple[list[object], Cursor]]) -> Iterator[Read]:
    """The reads from the start up to `END`."""
    for documents, cursor in reads:
        yield [str(document) for document in documents], cursor
        if cursor >= END:
            return


def recorded(log: Path) -> list[Read]:
    """What a log holds, without a last line that was not written to its end."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(texts, Cursor(*cursor)) for texts, cursor in entries]


def consume(endpoint: str, folder: Path, log: Path) -> None:
    """Resume where the log ends."""
    streaming.RETRY_SECONDS = 0.05
    before = recorded(log)
    log.write_text("".join(json.dumps(read) + "\n" for read in before))
    client = httpx.Client(trust_env=False, timeout=TIMEOUT)
    hub = Hub(endpoint, client, backoff=0.001)
    source = StreamingShards(folder, FORTY, CACHED, hub, lambda event: None)
    start = before[-1][1] if before else Cursor()
    with log.open("a") as stream:
        for read in until_end(ShardDocuments(source).training(start)):
            stream.write(json.dumps(read) + "\n")
            stream.flush()


def interrupted_run(seed: int, folder: Path, kills: int) -> tuple[list[Read], list[Read], int]:
    """What an offline run reads, what the killed one read, and how many processes that took.

    Raises:
        AssertionError: more shards were on disk than allowed, or it took too many processes.
    """
    order = random.Random(seed)
    origin, data, log = folder / "origin", folder / "data", folder / "log"
    files = dataset_files(FORTY, origin)
    offline = list(until_end(ShardDocuments(LocalShards(origin)).training(Cursor())))
    moments = sorted(order.sample(range(len(offline)), kills))
    processes = 0
    with HubServer(files) as server:
        server.faults = [_fault(order) for _ in range(80)]
        command = [sys.executable, "-m", __spec__.name, server.endpoint, str(data), str(log)]
        while len(recorded(log)) < len(offline):
            processes += 1
            assert processes < 20 + kills
            moment = moments.pop(0) if moments else len(offline) + 1
            with subprocess.Popen(command, cwd=TESTS, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and len(recorded(log)) <= moment:
                    time.sleep(0.002)
                process.kill()
            assert len(list((data / STREAMED).glob("shard_*"))) <= CACHED
    return offline, recorded(log), processes


def _fault(order: random.Random) -> Fault:
    name = f"shard_{order.randrange(FORTY.last_shard + 1):05d}.parquet"
    byte = order.randrange(2000)
    kinds = [
        Fault(name, cut=byte),
        Fault(name, cut=byte, ignore_range=True),
        Fault(name, spoil=byte),
        Fault(name, status=500, times=7),
        Fault(name, status=416),
        Fault(name, status=429, headers={"Retry-After": "0"}),
        Fault(name, method="HEAD", status=503, times=3),
    ]
    return Fault(name, cut=byte, stall=60) if order.random() < 0.05 else order.choice(kinds)


if __name__ == "__main__":
    consume(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
