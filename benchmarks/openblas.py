"""Whole training steps with OpenBLAS and with the BLAS of MLX's own wheel, in turns.

    python benchmarks/openblas.py

Both programs are mlxchat's of `training.py`, on a Linux CPU; the second is told that the package
cmeel-openblas is not installed, and warns of it as it would then.
"""

import argparse
import importlib.metadata
import json
import runpy
import sys
from pathlib import Path

import rounds
import training

from mlxchat.model.config import GPTConfig

WITH, WITHOUT = training.OURS, "without OpenBLAS"
PROGRAMS = (WITH, WITHOUT)
PACKAGE = "cmeel-openblas"


def main() -> None:
    """Measure and print, or be the program without."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--device-batch-size", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=4096)
    rounds.add_options(parser, PROGRAMS)
    given = parser.parse_args()
    script = str(Path(training.__file__))
    shape = ("depth", "max_seq_len", "device_batch_size", "vocab_size")
    options = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in shape]
    step = [script, *options, f"--worker={training.OURS}"]
    if given.worker:
        hide(PACKAGE)
        sys.argv = step
        runpy.run_path(script, run_name="__main__")
        return
    again = [sys.executable, __file__, *options, f"--worker={WITHOUT}"]
    commands = {WITH: [sys.executable, *step], WITHOUT: again}
    measured = rounds.alternate(
        [rounds.Program(name, commands[name]) for name in given.programs],
        given.rounds,
        given.seconds,
        given.threads,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    if given.json:
        print(json.dumps(rounds.everything(given, measured, ("mlx", PACKAGE))))
        return
    config = GPTConfig.from_depth(given.depth, given.vocab_size, given.max_seq_len)
    batches = dict.fromkeys(PROGRAMS, given.device_batch_size)
    print(training.report(config, batches, measured, given.threads, nanochat=None))
    print(f"\n{WITH} has {PACKAGE} {importlib.metadata.version(PACKAGE)}.")


def hide(package: str) -> None:
    """Let nobody in this process find an installed package."""
    find = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    importlib.metadata.distribution = distribution


if __name__ == "__main__":
    rounds.explain(main)
