"""Kill a run again and again, during writing too: it must go on and end as an undisturbed one.

    python benchmarks/kills.py --kills 50
    python benchmarks/kills.py --kills 50 --data-dir FOLDER --depth 2 --num-iterations 60

Trains on the built-in corpus, or on the shards in a folder, saving every second step: once without
a disturbance, then with a SIGKILL at random moments of each start. After each, all steps on disk
must be whole; at the end of each run weights, optimizer and loader must be those of the undisturbed
one bit for bit, and every step logged once. Ends at the first that is not so.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.killed_runs import NEW_MODEL, KilledRuns


def main() -> None:
    """Run it and print where the kills hit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--num-iterations", type=int, default=30)
    parser.add_argument("--arch", choices=("classic", "modern"), default="classic")
    given = parser.parse_args()
    settings = {
        **NEW_MODEL,
        "arch": given.arch,
        "depth": given.depth,
        "num_iterations": given.num_iterations,
    }
    if given.data_dir:
        settings["data_dir"] = str(given.data_dir)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = KilledRuns(Path(folder), settings).kill(given.kills, given.seed)
    runs = counts.pop("runs")
    print(f"{runs} runs ended as the undisturbed one, in {time.monotonic() - begun:.0f} s")
    for what, count in counts.most_common():
        print(f"{count:>6} {what}")


if __name__ == "__main__":
    main()
