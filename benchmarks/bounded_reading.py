"""The memory of reading files that stand for far more than they hold, by every way in.

    python benchmarks/bounded_reading.py

Each is read in a process of its own; prints the size of the file, the peak of resident memory, the
time, and what was said of it.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import rounds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import packed
from support.peaks import MB, WAYS, hostile, line_of, reading

SAID = 60  # characters of the message


def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--line", type=int, default=600, help="length of a long line, in MB")
    given = parser.parse_args()
    cases = [(way, "51 GB", lambda folder, way=way: hostile(way, folder)) for way in WAYS]
    for made in packed.OF_TEXT[1:]:
        way, name = "data fetch --from", made.__name__.replace("_", " ")
        cases.append((way, name, lambda folder, made=made: made(folder / "own.parquet")))
    for way in ("data fetch --from", "sft --data"):
        cases.append((way, f"a line of {given.line} MB", line_of(given.line)))
    print(rounds.table([row(*case) for case in cases]))


def row(way: str, name: str, make: Callable[[Path], Path]) -> dict[str, str]:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder))
        begin = time.perf_counter()
        found = reading(way, path)
        seconds = time.perf_counter() - begin
    return {
        "way": way,
        "file": name,
        "bytes": f"{found.size:,}",
        "peak, MB": f"{found.peak / MB:,.0f}",
        "seconds": f"{seconds:.1f}",
        "said": found.said.replace(str(path.parent), "")[:SAID],
    }


if __name__ == "__main__":
    rounds.explain(main)
