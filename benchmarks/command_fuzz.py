"""Random options and damaged files for every command: exit codes, messages, memory.

    python benchmarks/command_fuzz.py --examples 2000

Prints each example that broke a rule, and how many did. `--seed` and `--only` run one again.
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.any_command import PATIENCE, examples, make_template


def main() -> None:
    """Run the examples, and exit with 1 if one broke a rule."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one example, shown in full")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds per command")
    arguments = parser.parse_args()
    numbers = range(arguments.examples) if arguments.only is None else [arguments.only]
    codes: collections.Counter[int] = collections.Counter()
    started, broken, peak = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        template, scratch = Path(folder) / "template", Path(folder) / "scratch"
        template.mkdir()
        scratch.mkdir()
        make_template(template)
        run = examples(template, scratch, arguments.seed, numbers, arguments.patience)
        for example, result in run:
            codes[result.code] += 1
            peak = max(peak, result.peak)
            fault = result.fault(example)
            broken += fault is not None
            if fault or arguments.only is not None:
                print(f"{fault or 'fine'}: {example}", flush=True)
                print(*(result.out + result.err).splitlines()[-40:], sep="\n    ", flush=True)
    print(
        f"{len(numbers)} examples in {time.monotonic() - started:.0f} s, {broken} broke a rule; "
        f"exit codes {dict(sorted(codes.items()))}; at most {peak / 2**20:.0f} MiB"
    )
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
