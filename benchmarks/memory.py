"""What training takes: the peak of MLX's allocator over whole steps, beside what was estimated.

    python benchmarks/memory.py --depth 4 12 --max-seq-len 512 --device-batch-size 1 \
        --vocab-size 4096 65536 --grad-checkpoint off on
    python benchmarks/memory.py --depth 12 16 20 26 --device-batch-size 1  # on an NVIDIA GPU
    python benchmarks/memory.py --depth 4 --max-seq-len 512 --vocab-size 4096 --steps 200 --all

Each case trains in a process of its own, on random tokens: forward, backward, accumulation of
--accumulation micro-batches, clipping, Muon and AdamW. As a run does, it has MLX compute ahead only
within the estimate, which it then fills; --free lets it do so as far as it likes. With --all, whole
batches are evaluated, texts continued and the state saved in between, every tenth step.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import rounds

from mlxchat import runtime
from mlxchat.checkpoint import store
from mlxchat.config.pretrain import PretrainConfig
from mlxchat.data.loader import LoaderState
from mlxchat.engine.generate import continue_greedily
from mlxchat.errors import MlxchatError
from mlxchat.optim.optimizer import PARAM_GROUPS
from mlxchat.plan.memory import training_bytes
from mlxchat.plan.plan import Plan, plan
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import SYSTEM_CLOCK
from mlxchat.telemetry.events import Event, Stepped
from mlxchat.train.loop import Cadence, Hooks, train
from mlxchat.train.measure import resources, synthetic_step
from mlxchat.train.step import StepParts, compile_step

GB = 10**9
FIRST_STEPS = 5  # whose peak is what later ones are compared to
EVERY = 10  # steps between evaluations and so on
PROMPT = list(range(20))


def main() -> None:
    """Measure and print; or be the process of one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=list(PARAM_GROUPS), nargs="+", default=["classic"])
    parser.add_argument("--depth", type=int, nargs="+", default=[4])
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[65_536])
    parser.add_argument("--max-seq-len", type=int, nargs="+", default=[2048])
    parser.add_argument("--device-batch-size", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--grad-checkpoint", choices=["auto", "on", "off"], nargs="+", default=["auto"]
    )
    parser.add_argument("--chunk-rows", type=int, help="positions in a chunk of the loss")
    parser.add_argument("--memory-limit", help="that is planned for, such as 4GB")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches in a step")
    parser.add_argument("--steps", type=int, default=FIRST_STEPS)
    parser.add_argument("--all", action="store_true", help="evaluate, sample and save in between")
    parser.add_argument("--free", action="store_true", help="not kept within the estimate")
    parser.add_argument("--json", action="store_true", help="everything measured, no table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(argparse.Namespace(**json.loads(given.case)))))
        return
    measured = [in_a_process(case) for case in cases(given)]
    versions = rounds.versions("mlx")
    if given.json:
        print(json.dumps({"versions": versions, "cases": measured}))
    else:
        print(report(given, measured))


def cases(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every combination of what was given."""
    settings = vars(given)
    several = {name: values for name, values in settings.items() if isinstance(values, list)}
    for values in itertools.product(*several.values()):
        yield settings | dict(zip(several, values, strict=True))


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """What `measure` returns for a case, of a process that has done nothing else.

    Raises:
        MlxchatError: it ended early, out of memory perhaps; its own words are on standard error.
    """
    named = f"{case['arch']} d{case['depth']}, vocabulary {case['vocab_size']:,}"
    print(f"{named}, {case['device_batch_size']} rows", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise MlxchatError(
            f"{named}: ended with status {done.returncode}.", "What it said of it is above."
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(case: argparse.Namespace) -> dict[str, Any]:
    """Train as told; returns peaks and estimate in bytes."""
    made = planned(case)
    estimate = training_bytes(made.model, made, resources())
    runtime.bound_buffer_cache()
    if not case.free:
        runtime.hold_memory(resources().memory, estimate["peak"], None)
    step, hooks, cadence = synthetic_step(made), Hooks(SYSTEM_CLOCK), Cadence()
    peaks, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        if case.all:
            hooks, cadence = activities(step, Path(folder)), Cadence(EVERY, EVERY, EVERY)
        for event in train(compile_step(step), lambda: made.num_iterations, hooks, cadence):
            if isinstance(event, Stepped):
                peaks.append(mx.get_peak_memory())
                seconds.append(event.seconds)
    # The first one compiles; the last one is under way when the one before it is told of.
    counted = seconds[1:-1] or [sum(seconds) / len(seconds)]
    return {
        "case": vars(case),
        "parameters": made.parameters,
        "checkpointing": made.grad_checkpoint,
        "chunk_rows": made.chunk_rows,
        "estimate": estimate,
        "peak_first": peaks[min(FIRST_STEPS, len(peaks)) - 1],
        "peak": mx.get_peak_memory(),
        "tokens_per_second": made.tokens_per_step / median(counted),
        "device": runtime.machine().device,
        "dtype": str(runtime.machine().compute_dtype).rpartition(".")[2],
    }


def planned(case: argparse.Namespace) -> Plan:
    """The plan of a case."""
    config = PretrainConfig(
        arch=case.arch,
        depth=case.depth,
        max_seq_len=case.max_seq_len,
        device_batch_size=case.device_batch_size,
        total_batch_size=case.accumulation * case.device_batch_size * case.max_seq_len,
        num_iterations=case.steps,
        grad_checkpoint=case.grad_checkpoint,
        memory_limit=case.memory_limit,
    )
    made = plan(config, case.vocab_size, resources())
    return made.model_copy(update={"chunk_rows": case.chunk_rows or made.chunk_rows})


def activities(run: StepParts, folder: Path) -> Hooks:
    """Return what else a run does: evaluate, sample, and save all that it would resume from."""
    in_chunks = partial(run.model.losses, chunk_rows=run.plan.chunk_rows)
    losses = mx.compile(in_chunks, inputs=run.model.state)

    def evaluate(_: int) -> Iterator[Event]:
        for batch in itertools.islice(run.batches, 4):
            mx.eval(losses(mx.array(batch.ids), mx.array(batch.targets)))
        return iter(())

    def sample(_: int) -> Iterator[Event]:
        continue_greedily(run.model, [PROMPT, PROMPT[:5]], frozenset(), 16)
        return iter(())

    def save(step: int, _: LoaderState) -> Iterator[Event]:
        def write(into: Path) -> None:
            mx.save_safetensors(str(into / "model.safetensors"), run.model.named_parameters())
            mx.save_safetensors(str(into / "optimizer.safetensors"), run.optimizer.state)

        store.save(folder, step, write)
        store.prune(folder, 1)
        return iter(())

    return Hooks(SYSTEM_CLOCK, evaluate, sample, save)


def report(given: argparse.Namespace, measured: list[dict[str, Any]]) -> str:
    """What was measured, in Markdown."""
    rows = []
    for result in measured:
        case, estimate = result["case"], dict(result["estimate"])
        expected = estimate.pop("peak")
        row = {
            "model": f"{case['arch']} d{case['depth']}",
            "vocabulary": f"{case['vocab_size']:,}",
            "parameters": f"{result['parameters'] / 1e6:,.1f} M",
            "rows": f"{case['device_batch_size']} of {case['max_seq_len']:,}",
            "checkpointing": "yes" if result["checkpointing"] else "no",
            "chunk": f"{result['chunk_rows']:,}",
            "peak, GB": f"{result['peak'] / GB:.3f}",
            "estimate": f"{expected / GB:.3f}",
            "estimate / peak": f"{expected / result['peak']:.2f}",
            f"after {FIRST_STEPS} steps": f"{result['peak_first'] / result['peak']:.3f}",
            "tokens/s": f"{result['tokens_per_second']:,.0f}",
        }
        names = ("parameters", "gradients", "optimizer", "accumulation", "activations", "logits")
        held = {f"{name}, GB": f"{estimate.get(name, 0) / GB:.2f}" for name in (*names, "update")}
        rows.append(row | held)
    first = measured[0]
    return "\n".join(
        [
            f"{given.steps} steps of {given.accumulation} micro-batches on {first['device']}, "
            f"{first['dtype']}; {rounds.listed('mlx')}.",
            "",
            rounds.table(rows),
        ]
    )


if __name__ == "__main__":
    rounds.explain(main)
