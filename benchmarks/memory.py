"""What training takes: MLX's peak memory for a depth, context length and batch.

    python benchmarks/memory.py --depth 4 --max-seq-len 512 --device-batch-size 8 --vocab-size 4096

Trains two steps of two micro-batches each, whole steps with the optimizer, on random tokens, and
prints the peak of MLX's allocator.
"""

import argparse
import itertools

import numpy as np

from mlxchat import runtime
from mlxchat.data.loader import Batch, LoaderState
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.model.initial import initialise
from mlxchat.optim.groups import GROUPS, MATRIX, MuonAdamW, Rates
from mlxchat.runtime import mx
from mlxchat.train.loop import Run, train

MIB = 1024**2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=list(GROUPS), default="classic")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--device-batch-size", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=65_536)
    given = parser.parse_args()
    machine = runtime.machine()
    runtime.bound_buffer_cache()
    model = GPT(
        GPTConfig.from_depth(given.depth, given.vocab_size, given.max_seq_len, arch=given.arch),
        machine.compute_dtype,
    )
    initialise(model, mx.random.key(0))
    shape = (given.device_batch_size, given.max_seq_len + 1)
    rows = np.random.default_rng(0).integers(0, given.vocab_size, shape, dtype=np.int32)
    rate = mx.array(0.01)
    rates = Rates(dict.fromkeys([MATRIX, *GROUPS[given.arch]], rate), mx.array(0.9), mx.array(0.0))
    run = Run(
        model=model,
        optimizer=MuonAdamW(model.named_parameters(), given.arch, machine.compute_dtype),
        batches=itertools.repeat(Batch(rows[:, :-1], rows[:, 1:], LoaderState())),
        shards=1,
        rates=lambda _: rates,
        step=0,
        evaluated=True,
        total_steps=2,
        accumulation=2,
        grad_clip=1.0,
        eval_every=0,
        sample_every=0,
        save_every=0,
        evaluate=lambda _: iter(()),
        sample=lambda _: iter(()),
        save=lambda *_: iter(()),
        stop=lambda: False,
        clock=lambda: 0.0,
    )
    for _ in train(run):
        pass
    weights = sum(p.size for p in model.named_parameters().values())
    print(
        f"{given.arch} d{given.depth}, vocabulary {given.vocab_size:,}, "
        f"{shape[0]} rows of {given.max_seq_len}: "
        f"{weights:,} parameters ({4 * weights / MIB:,.0f} MiB), "
        f"peak {mx.get_peak_memory() / MIB:,.0f} MiB on {machine.device}"
    )


if __name__ == "__main__":
    main()
