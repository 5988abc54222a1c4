"""Thousands of files of any bytes through ``data fetch --from``: shards or a clear error.

    python benchmarks/ingest_fuzz.py --examples 20000

Ends with the smallest file that broke the rule, if one did.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hypothesis import HealthCheck, given, settings
from support.any_bytes import FILES, shards_or_a_clear_error


def fuzz(name: str, examples: int) -> Callable[[], None]:
    """What tries ``examples`` contents for a file of that name."""

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=HealthCheck
    )
    @given(FILES[name])
    def bring_in(content: bytes) -> None:
        shards_or_a_clear_error(name, content)

    return bring_in


def main() -> None:
    """Try every kind of file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=20_000, help="of each kind of file")
    arguments = parser.parse_args()
    for name in FILES:
        fuzz(name, arguments.examples)()
        print(f"{name}: {arguments.examples} files, all shards or a clear error", flush=True)


if __name__ == "__main__":
    main()
