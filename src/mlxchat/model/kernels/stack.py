"""Many small arrays put one behind the other, which are as many copies with MLX's operations."""

from collections.abc import Sequence
from functools import cache

from mlxchat.model.kernels.source import Kernel
from mlxchat.runtime import mx

MOST = 24  # arrays at once: Metal passes at most 31 to a kernel
_THREADS = 256

_BEGIN = """
  const int SIZE = counts[0], i = block_id * THREADS + thread_id;
  if (i >= SIZE) return;
"""


@cache
def kernel_for(parts: int) -> Kernel:
    """Return the kernel of so many arrays; a thread copies a number of each."""
    names = [f"part_{n}" for n in range(parts)]
    lines = [f"  whole[size_t({n}) * SIZE + i] = {name}[i];\n" for n, name in enumerate(names)]
    return Kernel(f"mlxchat_stack_{parts}", [*names, "counts"], ["whole"], _BEGIN + "".join(lines))


def stack_in_one_kernel(parts: Sequence[mx.array]) -> mx.array:
    """Return up to `MOST` arrays of one shape, (...), and dtype as one, (parts, ...)."""
    size, shape, dtype = parts[0].size, parts[0].shape, parts[0].dtype
    [whole] = kernel_for(len(parts))(
        [*parts, mx.array([size], mx.int32)],
        [((len(parts), *shape), dtype)],
        blocks=-(-size // _THREADS),
        threads=_THREADS,
    )
    return whole
