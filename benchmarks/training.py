"""Whole training steps of mlxchat and of torch, in turns, on the same shapes, tokens and threads.

    python benchmarks/training.py --depth 4 --max-seq-len 256 --device-batch-size 8 \
        --vocab-size 4096
    python benchmarks/training.py --depth 12 --device-batch-size 8 torch-compile=32
    python benchmarks/training.py --nanochat ~/nanochat  # of commit dfc8833 or earlier
    python benchmarks/training.py --arch modern --depth 12 --vocab-size 32768
    python benchmarks/training.py --check  # do our torch models compute what nanochat does?

A step is forward, backward, joint clipping (classic) and update (Muon or NorMuon, and AdamW) of
nanochat's architecture. Each program computes as it does when it trains: float32 on a CPU, on CUDA
bfloat16. With --cold none finds kernels that were compiled before: the first step takes as long as
on a new machine.
Needs the extra bench: pip install -e ".[bench]".
"""

import argparse
import importlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import rounds

from mlxchat.errors import MlxchatError
from mlxchat.model.config import WINDOW_PATTERNS, GPTConfig
from mlxchat.model.size import flops_per_token

if TYPE_CHECKING:
    import torch

OURS = "mlxchat"
PROGRAMS = (OURS, "torch-eager", "torch-compile")
PACKAGES = ("mlx", "torch")
MIB = 1024**2
CACHES = (  # of compiled kernels: mlxchat's, with what it measured; torch's and triton's; CUDA's
    *("MLXCHAT_HOME", "MLX_PTX_CACHE_DIR"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    "CUDA_CACHE_PATH",
)

Rows = npt.NDArray[np.int32]  # (B, T)


def main() -> None:
    """Measure and print; or check; or be one of the programs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=list(WINDOW_PATTERNS), default="classic")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=2048)
    parser.add_argument(
        "--device-batch-size",
        nargs="+",
        default=["8"],
        metavar="N | PROGRAM=N",
        help="sequences in a step; for a program, if it is named",
    )
    parser.add_argument("--vocab-size", type=int, default=65_536)
    parser.add_argument(
        "--nanochat", type=Path, help="a checkout to run in place of our torch model"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare our torch models to nanochat's"
    )
    parser.add_argument("--cold", action="store_true", help="no kernel was compiled before")
    rounds.add_options(parser, PROGRAMS)
    given = parser.parse_args()
    if given.check:
        check()
        return
    if given.nanochat and given.arch != "classic":
        parser.error("--nanochat runs the classic architecture")
    config = GPTConfig.from_depth(given.depth, given.vocab_size, given.max_seq_len, arch=given.arch)
    batches = batch_sizes(given.device_batch_size)
    if given.worker:
        batch = batches[given.worker]
        rounds.serve(partial(work, given.worker, config, batch, given.nanochat))
        return
    with empty_caches() if given.cold else nullcontext():
        measured = rounds.measure(given)
    if given.json:
        print(json.dumps({**rounds.everything(given, measured, PACKAGES), "batches": batches}))
    else:
        print(report(config, batches, measured, given.threads, given.nanochat))


def batch_sizes(values: Sequence[str]) -> dict[str, int]:
    """Sequences in a step by program, from ``N`` for all and ``PROGRAM=N`` for one.

    Raises:
        MlxchatError: one is neither.
    """
    sizes = {}
    for value in sorted(values, key=lambda value: "=" in value):
        name, _, number = value.rpartition("=")
        if not number.isdecimal() or int(number) < 1 or name not in {"", *PROGRAMS}:
            raise MlxchatError(
                f"--device-batch-size {value} is neither a number nor PROGRAM=NUMBER.",
                f"The programs are {', '.join(PROGRAMS)}.",
            )
        sizes.update(dict.fromkeys([name] if name else PROGRAMS, int(number)))
    return {program: sizes.get(program, 8) for program in PROGRAMS}


@contextmanager
def empty_caches() -> Iterator[None]:
    """Let the programs that are started meanwhile find empty folders of compiled kernels."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({name: str(Path(folder) / name) for name in CACHES})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def check() -> None:
    """Print how far our torch models are from nanochat's numbers; exit 1 where too far."""
    golden, parts = map(rounds.import_rival, ("golden", "torch_parts"))
    failed = False
    devices = {parts.best_device().type, "cpu"}
    for device, arch, compiled in itertools.product(
        sorted(devices), WINDOW_PATTERNS, (False, True)
    ):
        print(f"{arch}, {'compiled' if compiled else 'eager'}, {device}")
        for difference in golden.differences(arch, compiled, device):
            failed |= not difference.small
            verdict = "" if difference.small else "  TOO FAR"
            print(
                f"  {difference.quantity}: {difference.found:.1e} "
                f"(at most {difference.tolerance:.0e}){verdict}"
            )
    sys.exit(failed)


def report(
    config: GPTConfig,
    batches: dict[str, int],
    measured: Sequence[rounds.Measured],
    threads: int,
    nanochat: Path | None,
) -> str:
    """What was measured, in Markdown."""
    tokens = {program.name: batches[program.name] * config.sequence_len for program in measured}
    speeds = {program.name: program.speeds(tokens[program.name]) for program in measured}
    rows = []
    for program in measured:
        speed, facts = statistics.median(speeds[program.name]), program.facts
        shown = program.name.replace("torch", "nanochat") if nanochat else program.name
        row = {
            "program": shown,
            "device": f"{facts['device']}, {facts['dtype']}",
            "batch": str(batches[program.name]),
            "tokens/s": f"{speed:,.0f}",
            "of rounds": f"{min(speeds[program.name]):,.0f} to {max(speeds[program.name]):,.0f}",
            "seconds a step": f"{tokens[program.name] / speed:.3f}",
            "TFLOP/s": f"{speed * flops_per_token(config) / 1e12:.3f}",
            "peak memory": f"{facts['peak_bytes'] / MIB:,.0f} MiB ({facts['peak_of']})",
            "first step, s": f"{program.first:.1f}",
        }
        if OURS in speeds:
            ratio = rounds.ratio(speeds[OURS], speeds[program.name])
            row[f"{OURS} / it"] = f"{ratio:.2f}"
        rows.append(row)
    return "\n".join(
        [
            f"{config.arch.capitalize()} d{config.n_layer}, {config.sequence_len} tokens in a "
            f"sequence, vocabulary {config.vocab_size:,}; medians of {len(measured[0].seconds)} "
            f"rounds, ratios within a round; {threads} threads; {rounds.listed(*PACKAGES)}.",
            "",
            rounds.table(rows),
        ]
    )


def work(name: str, config: GPTConfig, batch: int, nanochat: Path | None) -> rounds.Work:
    """What a program does; its tokens are random, the same in every program of that batch."""
    tokens = np.random.default_rng(0).integers(
        0, config.vocab_size, (batch, config.sequence_len + 1), dtype=np.int32
    )
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    if name == OURS:
        return _ours(config, ids, targets)
    return _torch(config, ids, targets, name == "torch-compile", nanochat)


def _ours(config: GPTConfig, ids: Rows, targets: Rows) -> rounds.Work:
    from mlxchat import runtime  # MLX is for this program only
    from mlxchat.config.pretrain import PretrainConfig
    from mlxchat.data.loader import Batch, LoaderState
    from mlxchat.plan.plan import plan
    from mlxchat.runtime import mx
    from mlxchat.train.measure import resources, synthetic_step
    from mlxchat.train.step import compile_step

    settings = PretrainConfig(
        arch=config.arch,
        depth=config.n_layer,
        max_seq_len=config.sequence_len,
        device_batch_size=len(ids),
        total_batch_size=ids.size,
        num_iterations=1,
    )
    runtime.bound_buffer_cache()
    made = plan(settings, config.vocab_size, resources())
    batches = itertools.repeat(Batch(ids, targets, LoaderState()))
    step = replace(synthetic_step(made), batches=batches)
    launch = compile_step(step)

    def repeat(times: int) -> float:
        begun, latest = time.perf_counter(), mx.array(0.0)
        for number in range(1, times + 1):
            before, latest = latest, launch(number).metrics
            mx.eval(before)  # as the training loop reads a step's loss: while the next one runs
        mx.eval(latest, step.model.parameters(), step.optimizer.state)
        return time.perf_counter() - begun

    def facts() -> dict[str, Any]:
        machine = runtime.machine()
        on_cpu = machine.backend == "cpu"
        return {
            "device": machine.device,
            "dtype": str(machine.compute_dtype).rpartition(".")[2],
            "peak_bytes": rounds.resident_peak() if on_cpu else mx.get_peak_memory(),
            "peak_of": "process" if on_cpu else "allocator",
        }

    return rounds.Work(repeat, facts)


def _torch(
    config: GPTConfig, ids: Rows, targets: Rows, compiled: bool, nanochat: Path | None
) -> rounds.Work:
    parts, steps = map(rounds.import_rival, ("torch_parts", "torch_training"))
    import torch  # is there, and for these programs only

    device = parts.best_device()
    dtype = parts.dtype_on(device)
    if nanochat:
        model, optimizers = _nanochats(nanochat, config, device)
    else:
        model = rounds.import_rival(f"torch_{config.arch}").GPT(config)
        steps.place_for_training(model, device, dtype, compiled)
        optimizers = steps.nanochats_optimizers(model, dtype, compiled)
    trainer = steps.Trainer(model, optimizers, config.arch, dtype, compiled)
    x, y = (torch.from_numpy(rows).long() for rows in (ids, targets))
    if device.type == "cuda":
        x, y = x.pin_memory(), y.pin_memory()  # so that a copy waits for nothing

    def repeat(times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            there = (rows.to(device, non_blocking=True) for rows in (x, y))
            loss = trainer.step(*there)
        loss.item()
        parts.synchronise(device)
        return time.perf_counter() - begun

    def facts() -> dict[str, Any]:
        cuda = device.type == "cuda"
        return {
            "device": parts.name_of(device),
            "dtype": str(dtype).removeprefix("torch."),
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else rounds.resident_peak(),
            "peak_of": "allocator" if cuda else "process",
        }

    return rounds.Work(repeat, facts)


def _nanochats(checkout: Path, config: GPTConfig, device: "torch.device") -> tuple[Any, Any]:
    """nanochat's own model and optimizers."""
    sys.path.insert(0, str(checkout))
    try:
        gpt = importlib.import_module("nanochat.gpt")
    except ImportError as error:
        raise MlxchatError(
            f"No nanochat can be imported from {checkout} ({error}).",
            "Give --nanochat the root of a checkout of commit dfc8833, and install what it needs.",
        ) from error
    shape = gpt.GPTConfig(
        sequence_len=config.sequence_len,
        vocab_size=config.vocab_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        n_embd=config.n_embd,
    )
    model = gpt.GPT(shape).to(device)
    if not hasattr(model, "setup_optimizers"):
        raise MlxchatError(
            f"The nanochat in {checkout} is not of the classic architecture.",
            "Check out commit dfc8833 (30 October 2025), or an earlier one.",
        )
    model.init_weights()
    return model, model.setup_optimizers()


if __name__ == "__main__":
    rounds.explain(main)
