"""Thousands of downloads from a hub that misbehaves at random: none may end wrong in place.

    python benchmarks/download_faults.py --schedules 5000

Prints how the runs ended, and the seed of a schedule that broke a rule, if one did.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.download_faults import Schedules


def main() -> None:
    """Run them and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=5000)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Schedules(Path(folder)) as schedules:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.schedules):
            try:
                outcomes[schedules.run(seed)] += 1
            except AssertionError:
                print(f"the schedule of seed {seed} broke a rule")
                raise
            shutil.rmtree(Path(folder) / str(seed))
    print(f"{arguments.schedules} schedules in {time.monotonic() - begun:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"{outcome:>10}: {count}")


if __name__ == "__main__":
    main()
