"""Measures the memory that reading a file takes, for each command that reads files."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from support import packed

MB = 1_000_000

PROGRAM = """
import resource, sys
from pathlib import Path
from mlxchat.errors import MlxchatError
path = Path(sys.argv[1])
try:
{body}
    print("read")
except MlxchatError as error:
    print(error.problem)
unit = 1 if sys.platform == "darwin" else 1024
peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = Path("/proc/self/status")
if status.exists():  # there, the former number can be the parent's
    peak = 1024 * next(int(l.split()[1]) for l in status.open() if l.startswith("VmHWM"))
print(peak)
"""
WAYS = {
    "data fetch --from": """
    from mlxchat.data.ingest import ingest
    ingest(path, path.parent / "made", lambda event: None)
""",
    "train --data-dir": """
    from mlxchat.data.documents import Cursor, ShardDocuments
    from mlxchat.data.shards import LocalShards
    for _, cursor in ShardDocuments(LocalShards(path.parent)).training(Cursor()):
        if cursor.epoch > 1:
            break
""",
    "sft --data": """
    from mlxchat.data.chats.reading import read_source
    from mlxchat.data.chats.sources import Source
    read_source(Source(path))
""",
    "eval chat --tasks": """
    from mlxchat.evaluate.tasks import problems
    problems("gsm8k", path.parents[3], None)
""",
}


@dataclass(frozen=True)
class Outcome:
    """The size of a file, what its reader said, and the peak of resident memory; sizes in bytes."""

    size: int
    said: str
    peak: int


def reading(way: str, path: Path) -> Outcome:
    """Read a file in a process of its own."""
    program = PROGRAM.format(body=WAYS[way])
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said, peak = done.stdout.splitlines()
    return Outcome(path.stat().st_size, said, int(peak))


def hostile(way: str, folder: Path) -> Path:
    """Make a small file that stands for 51 GB, of the kind that a command reads."""
    if way == "sft --data":
        return packed.in_rows_of_lists(folder / "chats.parquet")
    if way == "eval chat --tasks":
        path = folder / "openai--gsm8k" / "main" / "test" / "00000.parquet"
        path.parent.mkdir(parents=True)
        return packed.by_reference(path, "question")
    if way == "train --data-dir":
        pq.write_table(pa.table({"text": ["one"]}), folder / "shard_00001.parquet")
        return packed.by_reference(folder / "shard_00000.parquet")
    return packed.by_reference(folder / "own.parquet")


def line_of(megabytes: int) -> Callable[[Path], Path]:
    """Return a function that makes a file of one line of that length."""

    def make(folder: Path) -> Path:
        path = folder / "own.jsonl"
        with path.open("wb") as file:
            file.write(b'{"text": "')
            for _ in range(megabytes):
                file.write(b"a" * MB)
            file.write(b'"}\n{"text": "one"}\n{"text": "two"}\n')
        return path

    return make
