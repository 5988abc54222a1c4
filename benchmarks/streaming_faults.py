"""Streaming runs over a bad network, killed again and again: each reads what an offline run reads.

python benchmarks/streaming_faults.py --runs 50 --kills 10
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.streaming_runs import interrupted_run


def main() -> None:
    """Run them; ends at the first that read something else."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10, help="of each run")
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            offline, killed, processes = interrupted_run(seed, Path(folder), arguments.kills)
        documents = sum(len(texts) for texts, _ in killed)
        if killed != offline:
            sys.exit(f"seed {seed}: the documents are others than offline")
        print(f"seed {seed}: {documents} documents, the same, by {processes} processes", flush=True)


if __name__ == "__main__":
    main()
