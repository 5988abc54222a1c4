"""One rank and several that train together: speed, losses, weights, memory; a JSON line each.

    python benchmarks/ranks.py                 # as many ranks as there are GPUs, depth 12
    python benchmarks/ranks.py --ranks 2 --depth 1 --max-seq-len 64 --vocab-size 512 \
        --rows 2 4 --steps 5 --loss-steps 20   # two processes on a CPU

Speed is that of whole steps with ``--rows`` rows on each rank, so that several ranks have several
times the rows of one; ``efficiency`` is their tokens/s over that of so many single ones. Losses are
those of steps of the same rows on one rank and on all, with their largest relative difference.
Whether all ranks end with equal weights is checked bit by bit. Every line is printed as soon as it
is known, and what no time is left for is named: the whole can be cut off at any moment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rounds

from mlxchat.cli.ranks import environment, own
from mlxchat.errors import DeviceError
from mlxchat.json_text import parse_json
from mlxchat.model.config import WINDOW_PATTERNS

if TYPE_CHECKING:
    from mlxchat.data.loader import Batch
    from mlxchat.model.gpt import Arrays
    from mlxchat.train.world import World

DEVICES = "CUDA_VISIBLE_DEVICES"
ARCHS = list(WINDOW_PATTERNS)
CASE_SECONDS = 120.0  # the longest that one measurement may take
LEAST_SECONDS = 15.0  # with less than that left, no other measurement is begun
PATIENCE = 60.0  # seconds that a rank waits for the others
WARM_UPS = 3  # steps that are not counted: the first compiles
MODULUS, STRIDES = 251, 7  # of the sequences that the losses are of


@dataclass(frozen=True)
class Case:
    """A measurement of so many steps."""

    what: str  # "speed" or "losses"
    arch: str
    ranks: int
    rows: int  # that are computed at a time, on each rank
    rows_of_all: int  # in a step
    steps: int
    depth: int
    max_seq_len: int
    vocab_size: int
    sums: str


def main() -> None:
    """Measure everything, or be one rank of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=rounds.positive, help="default: one a GPU, at least 2")
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=ARCHS)
    parser.add_argument("--depth", type=rounds.positive, default=12)
    parser.add_argument("--max-seq-len", type=rounds.positive, default=2048)
    parser.add_argument("--vocab-size", type=rounds.positive, default=65_536)
    parser.add_argument("--rows", nargs="+", type=rounds.positive, default=[32, 8])
    parser.add_argument("--steps", type=rounds.positive, default=30, help="that are timed")
    parser.add_argument("--loss-steps", type=rounds.positive, default=100)
    parser.add_argument("--sums", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        take_part(Case(**parse_json(given.case)))
        return
    until = time.monotonic() + 60 * given.minutes
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for case in cases(given, given.ranks or gpus()):
        left = until - time.monotonic()
        if left < LEAST_SECONDS:
            say({**named(case), "skipped": "no time is left"})
            continue
        answer = measured(case, min(CASE_SECONDS, left))
        say({**named(case), **{name: each for name, each in answer.items() if name != "losses"}})
        found[case.what, case.arch, case.rows, case.ranks] = answer
        single = found.get((case.what, case.arch, case.rows, 1))
        if case.ranks > 1 and single:
            say({**named(case), "compared": compared(case, single, answer)})


def gpus() -> int:
    """How many NVIDIA GPUs there are, or 2 where there is none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 2
    return max(2, len(listed.stdout.splitlines()))


def cases(given: argparse.Namespace, ranks: int) -> Iterator[Case]:
    """The measurements, the most important first."""
    shape = {name: getattr(given, name) for name in ("depth", "max_seq_len", "vocab_size", "sums")}
    least = min(given.rows)
    for arch in given.arch:
        for number in (1, ranks):
            yield Case("losses", arch, number, least, least * ranks, given.loss_steps, **shape)
    for rows in given.rows:
        for arch in given.arch:
            for number in (1, ranks):
                yield Case("speed", arch, number, rows, rows * number, given.steps, **shape)


def named(case: Case) -> dict[str, Any]:
    """What a line begins with."""
    return {name: getattr(case, name) for name in ("what", "arch", "ranks", "rows")}


def say(line: dict[str, Any]) -> None:
    """Print a line at once."""
    print(json.dumps(line), flush=True)


def compared(case: Case, single: dict[str, Any], several: dict[str, Any]) -> dict[str, Any]:
    """What several ranks come to beside one."""
    if "failed" in single or "failed" in several:
        return {"failed": "there is nothing to compare"}
    if case.what == "speed":
        times = several["tokens_per_second"] / single["tokens_per_second"]
        return {"times_as_fast": round(times, 3), "efficiency": round(times / case.ranks, 3)}
    one, many = np.array(single["losses"]), np.array(several["losses"])
    apart = np.abs(one - many) / one
    return {"largest_difference": float(apart.max()), "at_step": int(apart.argmax()) + 1}


# ==== The ranks of a measurement =================================================================


def measured(case: Case, seconds: float) -> dict[str, Any]:
    """Start the ranks of a case and return what rank 0 says, or why it could not."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        addresses = environment(case.ranks, folder) if case.ranks > 1 else {}
        processes, said = [], []
        for rank in range(case.ranks):
            said.append(stack.enter_context((folder / f"said-{rank}").open("w+")))
            more = own(rank) if case.ranks > 1 else {DEVICES: own(0)[DEVICES]}
            out = (folder / "answer").open("w") if rank == 0 else subprocess.DEVNULL
            started = subprocess.Popen(
                command, env=os.environ | addresses | more, stdout=out, stderr=said[rank]
            )
            stack.callback(started.wait)
            stack.callback(started.kill)
            processes.append(started)
        try:
            codes = [process.wait(seconds) for process in processes]
        except subprocess.TimeoutExpired:
            return {"failed": f"not done within {seconds:.0f} s", "said": last_words(said)}
        if any(codes):
            return {"failed": f"exit codes {codes}", "said": last_words(said)}
        answer: dict[str, Any] = parse_json((folder / "answer").read_text())
        return answer


def last_words(said: list[Any]) -> list[str]:
    """The last line that each rank wrote to its standard error."""
    words = []
    for file in said:
        file.seek(0)
        words.append((file.read().strip().splitlines() or [""])[-1])
    return words


def take_part(case: Case) -> None:
    """Be one rank: train, and print what came out if this is rank 0."""
    from mlxchat import runtime  # MLX is for the ranks only
    from mlxchat.config.pretrain import PretrainConfig
    from mlxchat.plan.plan import plan
    from mlxchat.runtime import mx
    from mlxchat.train.measure import least_resources, synthetic_step
    from mlxchat.train.step import compile_step
    from mlxchat.train.world import connect

    world = connect(PATIENCE, give_up, runtime.compute_dtype(case.sums))
    settings = PretrainConfig(
        arch=case.arch,
        depth=case.depth,
        max_seq_len=case.max_seq_len,
        device_batch_size=case.rows,
        total_batch_size=case.rows_of_all * case.max_seq_len,
        num_iterations=case.steps,
    )
    runtime.bound_buffer_cache()
    made = plan(settings, case.vocab_size, least_resources(world))
    step = synthetic_step(made, world=world)
    if case.what == "losses":
        step = replace(step, batches=sequences(case))
    launch = compile_step(step)
    uncounted = WARM_UPS if case.what == "speed" else 0
    last = uncounted + case.steps
    losses, waited, begun = list[float](), 0.0, time.perf_counter()
    pending = launch(1)
    for number in range(1, last + 1):
        following = launch(number + 1) if number < last else pending  # while this one is computed
        losses.append(pending.read()[0])
        if number == uncounted:
            begun = time.perf_counter()
        waited += (pending.waited or 0.0) if number > uncounted else 0.0
        pending = following
    seconds = time.perf_counter() - begun
    weights = step.model.named_parameters()
    on_cpu = runtime.machine().backend == "cpu"
    peak = rounds.resident_peak() if on_cpu else mx.get_peak_memory()
    answer = {
        "device": runtime.machine().device,
        "rows_of_all": case.rows_of_all,
        "tokens_per_second": round(case.steps * made.tokens_per_step / seconds, 1),
        "step_seconds": round(seconds / case.steps, 5),
        "waiting_share": round(waited / seconds, 4) if case.ranks > 1 else None,
        "gradient_bytes": sum(weight.nbytes for weight in weights.values()),
        "peak_bytes": [int(each) for each in world.all_gather([peak])[:, 0]],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "equal_weights": agree(world, weights, last) if case.ranks > 1 else None,
    }
    if world.leads:
        print(json.dumps({**answer, "losses": losses}))


def give_up(error: DeviceError) -> None:
    """End this rank: another one hangs."""
    print(error.problem, file=sys.stderr, flush=True)
    os._exit(os.EX_SOFTWARE)


def agree(world: "World", weights: "Arrays", step: int) -> bool:
    """Whether all ranks have the same weights, bit for bit."""
    from mlxchat.train.world import RanksDifferError

    try:
        world.require_equal(weights, step)
    except RanksDifferError as error:
        print(error, file=sys.stderr)
        return False
    return True


def sequences(case: Case) -> "Iterator[Batch]":
    """Batches of arithmetic sequences modulo a prime: a model learns them within a few steps."""
    from mlxchat.data.loader import Batch, LoaderState

    for seed in count():
        order = np.random.default_rng(seed)
        first = order.integers(MODULUS, size=(case.rows, 1))
        stride = order.integers(1, STRIDES + 1, size=(case.rows, 1))
        rows = (first + stride * np.arange(case.max_seq_len + 1)) % MODULUS
        ids = rows.astype(np.int32)
        yield Batch(ids[:, :-1], ids[:, 1:], LoaderState())


if __name__ == "__main__":
    rounds.explain(main)
