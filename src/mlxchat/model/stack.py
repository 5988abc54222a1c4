"""Many small arrays as one: the new keys and values of all layers, to be written at once."""

from collections.abc import Callable, Sequence

from mlxchat.autotune import fastest, remembered
from mlxchat.model.kernels.stack import MOST, kernel_for, stack_in_one_kernel
from mlxchat.runtime import machine, mx

_NUMBERS = 1024  # in each array that is measured


def stack_small(parts: Sequence[mx.array]) -> mx.array:
    """Return arrays of one shape, (...), and dtype as one, (parts, ...)."""
    if not _kernel_is_faster(parts[0].dtype):
        return _of_mlx(parts)
    stacked = [stack_in_one_kernel(parts[n : n + MOST]) for n in range(0, len(parts), MOST)]
    return stacked[0] if len(stacked) == 1 else mx.concatenate(stacked)


def _of_mlx(parts: Sequence[mx.array]) -> mx.array:
    return mx.stack(list(parts))


@remembered
def _kernel_is_faster(dtype: mx.Dtype) -> bool:
    if machine().backend == "cpu":
        return False
    drawn = mx.random.normal((MOST, _NUMBERS), key=mx.random.key(0)).astype(dtype)
    parts = list(drawn)
    mx.eval(parts)

    def example(way: Callable[[Sequence[mx.array]], mx.array]) -> Callable[[], list[mx.array]]:
        return lambda: [way(parts)]

    chosen = fastest(
        f"stack of {MOST} small arrays, {dtype}",
        {"formula": example(_of_mlx), "kernel": example(stack_in_one_kernel)},
        version=kernel_for(MOST).revision,
        tolerance=0.0,
    )
    return chosen == "kernel"
