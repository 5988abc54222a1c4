"""Windowed attention in blocks of queries, and whole with a mask: time, memory and difference.

    python benchmarks/windows.py --rows 8 32 --window 512 768

Blocks are what mlxchat takes on CPUs and on Metal; CUDA has a fused kernel for masks. Each line has
the medians of the forward pass alone and with the gradients of queries, keys and values, the peak
of MLX's allocator over what was there before, and the largest difference from the whole with a mask
in float32.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from mlxchat.model import block
from mlxchat.runtime import machine, mx

WARM_UPS = 2
Attention = Callable[..., mx.array]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--window", type=int, nargs="+", default=[512])
    parser.add_argument("--block", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--repetitions", type=int, default=10)
    given = parser.parse_args()
    dtype, T = machine().compute_dtype, given.positions
    print(f"{machine().device}, {str(dtype).rpartition('.')[2]}, mlx {mx.__version__}")
    for rows in given.rows:
        shape = rows, given.heads, T, given.head_dim
        drawn = [mx.random.normal(shape, key=key) for key in mx.random.split(mx.random.key(0), 4)]
        for window in given.window:
            expected = _results(drawn, window, T)
            arrays = [array.astype(dtype) for array in drawn]
            for size in (T, *(size for size in given.block if size < T)):
                off = max(
                    mx.abs(a - b).max().item()
                    for a, b in zip(_results(drawn, window, size), expected, strict=True)
                )
                attention = _attention(window, size)
                forward = _measured(mx.compile(attention), arrays[:3], given.repetitions)
                both = _measured(_gradients(attention), arrays, given.repetitions)
                name = "whole" if size == T else f"blocks of {size}"
                print(
                    f"{rows} rows, window {window}, {name}: {forward}; with gradients {both}; "
                    f"off by {off:.1e}",
                    flush=True,
                )


def _attention(window: int, size: int) -> Attention:
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        block.query_block = lambda *_: size
        return block.causal_attention(q, k, v, q.shape[-1] ** -0.5, window)

    return attend


def _gradients(attention: Attention) -> Attention:
    def loss(q: mx.array, k: mx.array, v: mx.array, weights: mx.array) -> mx.array:
        return (weights * attention(q, k, v)).sum()

    return mx.compile(mx.grad(loss, argnums=(0, 1, 2)))


def _results(arrays: Sequence[mx.array], window: int, size: int) -> list[mx.array]:
    attention = _attention(window, size)
    results = [attention(*arrays[:3]), *_gradients(attention)(*arrays)]
    mx.eval(results)
    return results


def _measured(work: Attention, arrays: Sequence[mx.array], repetitions: int) -> str:
    seconds = []
    for _ in range(WARM_UPS + repetitions):
        mx.eval(arrays)
        start = time.perf_counter()
        mx.eval(work(*arrays))
        seconds.append(time.perf_counter() - start)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(work(*arrays))
    peak = mx.get_peak_memory() - before
    return f"{1000 * statistics.median(seconds[WARM_UPS:]):.2f} ms, {peak / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
