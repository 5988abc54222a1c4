"""What training takes: MLX's peak memory for a depth, context length and batch.

    python benchmarks/memory.py --depth 4 --max-seq-len 512 --device-batch-size 8 --vocab-size 4096

Trains two steps of two micro-batches each, whole steps with the optimizer, on random tokens, and
prints the peak of MLX's allocator.
"""

import argparse

from mlxchat import runtime
from mlxchat.optim.groups import GROUPS
from mlxchat.runtime import mx
from mlxchat.train.loop import train
from mlxchat.train.plan import plan
from mlxchat.train.probe import capacity
from mlxchat.train.rehearsal import random_model, random_run
from mlxchat.train.settings import PretrainConfig

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
    config = PretrainConfig(
        arch=given.arch,
        depth=given.depth,
        max_seq_len=given.max_seq_len,
        device_batch_size=given.device_batch_size,
        total_batch_size=2 * given.device_batch_size * given.max_seq_len,
        num_iterations=2,
    )
    runtime.bound_buffer_cache()
    made = plan(config, given.vocab_size, capacity())
    for _ in train(random_run(random_model(made), made, clock=lambda: 0.0)):
        pass
    print(
        f"{given.arch} d{given.depth}, vocabulary {given.vocab_size:,}, "
        f"{given.device_batch_size} rows of {given.max_seq_len}: "
        f"{made.parameters:,} parameters ({4 * made.parameters / MIB:,.0f} MiB), "
        f"peak {mx.get_peak_memory() / MIB:,.0f} MiB on {runtime.machine().device}"
    )


if __name__ == "__main__":
    main()
