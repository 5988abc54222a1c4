"""The seconds that training or decoding spends in each kernel on an NVIDIA GPU.

    python benchmarks/kernel_times.py --depth 12 --device-batch-size 8
    python benchmarks/kernel_times.py --depth 12 --device-batch-size 8 --program torch-compile
    python benchmarks/kernel_times.py --work decoding --depth 12
    python benchmarks/kernel_times.py --work decoding --depth 12 --program torch-compile

Of training it is one step of `training`, taken after two others, so that everything is compiled; of
decoding 16 tokens of `decoding`, after two continuations of the same length. NVIDIA's ncu, which
must be on PATH and allowed to read the GPU's counters, measures the kernels one after another: what
is between them, launches and waiting, is not in the table.
"""

import argparse
import csv
import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decoding
import rounds
import training

from mlxchat.errors import MlxchatError
from mlxchat.model.config import WINDOW_PATTERNS, GPTConfig

METRIC = "gpu__time_duration.sum"
MILLISECONDS = {  # in a unit, by its names in the output of new and of old versions of ncu
    **dict.fromkeys(("ns", "nsecond"), 1e-6),
    **dict.fromkeys(("us", "usecond"), 1e-3),
    **dict.fromkeys(("ms", "msecond"), 1.0),
    **dict.fromkeys(("s", "second"), 1e3),
}
PROFILER = [
    *("ncu", "--csv", "--metrics", METRIC),
    *("--clock-control", "none"),  # as the clocks are in training
    *("--profile-from-start", "off"),  # only between cudaProfilerStart and cudaProfilerStop
]
RUNTIME = "libcudart.so.13"
WARM_UPS = 2
TOKENS = 16  # that are profiled
WORKS = ("training", "decoding")
LONGEST_NAME = 100  # MLX names a fused kernel after all that it does


@dataclass(frozen=True)
class Kernel:
    """A launch of a kernel: its name, without return type, arguments and template arguments."""

    name: str
    milliseconds: float


def main() -> None:
    """Measure and print, or do the work."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    programs = dict.fromkeys((*training.PROGRAMS, *decoding.DECODERS))
    parser.add_argument("--work", choices=WORKS, default=WORKS[0])
    parser.add_argument("--program", choices=programs, default=training.OURS)
    parser.add_argument("--arch", choices=list(WINDOW_PATTERNS), default="classic")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--max-seq-len", type=int, default=2048)
    parser.add_argument("--device-batch-size", type=int, default=8, help="Rows in training.")
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)  # for the worker
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    possible = training.PROGRAMS if given.work == "training" else decoding.DECODERS
    if given.program not in possible:
        parser.error(f"--work {given.work} is done by {', '.join(possible)}")
    if given.work == "decoding" and given.arch != "classic" and given.program != decoding.OURS:
        parser.error(f"the {given.arch} architecture is decoded by {decoding.OURS} alone")
    config = GPTConfig.from_depth(given.depth, given.vocab_size, given.max_seq_len, arch=given.arch)
    if given.worker and given.work == "training":
        take_step(training.work(given.program, config, given.device_batch_size, None))
        return
    if given.worker:
        make_tokens(given.program, decoding.Case(given.model, config, 1 + TOKENS))
        return
    if given.work == "training":
        totals = by_name(profile())
        amount = f"{given.device_batch_size} rows of {config.sequence_len} tokens"
    else:
        with decoding.random_model(config) as folder:
            totals = by_name(profile(f"--model={folder}"))
        amount = f"{TOKENS} tokens after {decoding.PROMPT_TOKENS}"
    packages = rounds.listed(*training.PACKAGES)
    print(f"{given.program}, {given.arch} d{config.n_layer}, {amount},")
    print(f"vocabulary {config.vocab_size:,}; {packages}.\n")
    print(report(totals))


def take_step(work: rounds.Work) -> None:
    """Take a step under the profiler, after others."""
    work.repeat(WARM_UPS)
    with _profiled():
        work.repeat(1)


def make_tokens(program: str, case: decoding.Case) -> None:
    """Make tokens under the profiler, all but the first; others and the prompt come before."""
    decoder, (prompt,) = decoding.DECODERS[program](case), case.prompts(1, decoding.PROMPT_TOKENS)
    for _ in range(WARM_UPS):
        list(decoder.after(prompt, case.new_tokens))
    tokens = decoder.after(prompt, case.new_tokens)
    next(tokens)
    with _profiled():
        list(tokens)
        decoder.drain()


@contextmanager
def _profiled() -> Iterator[None]:
    """Have ncu measure the kernels that are launched in the ``with`` block.

    Raises:
        MlxchatError: the machine has no CUDA runtime of that version.
    """
    try:
        runtime = ctypes.CDLL(RUNTIME)
    except OSError as error:
        raise MlxchatError(
            f"{RUNTIME} cannot be loaded ({error}).",
            "Kernels can be timed on a machine with an NVIDIA GPU and CUDA 13.",
        ) from error
    _require_success(runtime.cudaProfilerStart())
    yield
    _require_success(runtime.cudaProfilerStop())


def _require_success(status: int) -> None:
    if status != 0:
        raise MlxchatError(f"CUDA's profiler gave error {status}.", "What ncu said is above.")


def profile(*options: str) -> list[Kernel]:
    """The kernels that this script, called anew and with more options, launches under ncu.

    Raises:
        MlxchatError: ncu is not there, or it measured nothing.
    """
    if not shutil.which(PROFILER[0]):
        raise MlxchatError(
            f"{PROFILER[0]} is not on PATH.",
            "It comes with NVIDIA's CUDA toolkit (Nsight Compute).",
        )
    command = [*PROFILER, sys.executable, *sys.argv, *options, "--worker"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    kernels = list(parse(finished.stdout.splitlines()))
    if finished.returncode or not kernels:
        sys.stderr.write(finished.stdout)
        raise MlxchatError(
            f"{PROFILER[0]} ended with status {finished.returncode} and {len(kernels)} kernels.",
            "What it said is above.",
        )
    return kernels


def parse(lines: Iterable[str]) -> Iterator[Kernel]:
    """The kernels in what ncu prints, where the profiled program may have printed too."""
    table = (line for line in lines if line.startswith('"'))
    for row in csv.DictReader(table):
        if row["Metric Name"] == METRIC:
            value = float(row["Metric Value"].replace(",", ""))
            yield Kernel(base_name(row["Kernel Name"]), value * MILLISECONDS[row["Metric Unit"]])


def base_name(demangled: str) -> str:
    """A kernel's name without return type, arguments and template arguments."""
    for anonymous in ("(anonymous namespace)::", "<unnamed>::"):
        demangled = demangled.replace(anonymous, "")
    return demangled.removeprefix("void ").partition("<")[0].partition("(")[0]


def by_name(kernels: Iterable[Kernel]) -> dict[str, list[float]]:
    """The milliseconds of each launch by the kernel's name; what takes longest comes first."""
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        found.setdefault(kernel.name, []).append(kernel.milliseconds)
    return dict(sorted(found.items(), key=lambda item: -sum(item[1])))


def report(totals: dict[str, list[float]]) -> str:
    """The table of kernels, in Markdown."""
    everything = [each for launches in totals.values() for each in launches]
    rows = [
        _row(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…", launches, everything)
        for name, launches in totals.items()
    ]
    return rounds.table([*rows, _row("all", everything, everything)])


def _row(name: str, launches: list[float], everything: list[float]) -> dict[str, Any]:
    return {
        "kernel": name,
        "launches": f"{len(launches):,}",
        "ms": f"{sum(launches):,.3f}",
        "share": f"{sum(launches) / sum(everything):.1%}",
    }


if __name__ == "__main__":
    rounds.explain(main)
