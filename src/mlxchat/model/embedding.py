"""Rows of the embedding tables: float32 parameters, read in the compute dtype."""

from collections.abc import Callable, Sequence
from typing import cast

from mlxchat.autotune import fastest, remembered
from mlxchat.model.kernels.lookup import LOOKUP, look_up_forward
from mlxchat.runtime import machine, mx

_IDS = 65_536  # that are measured
_TABLE = 2**15  # rows


def look_up(table: mx.array, ids: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return the rows of a table, (V, C), at ``ids``, (...), as (..., C) in ``dtype``."""
    if table.dtype != mx.float32 or dtype == mx.float32:
        return table[ids].astype(dtype)
    if not _kernel_is_faster(table.shape[1], dtype):
        return _formula(table, ids, dtype)
    return _in_one_kernel(table, ids, dtype)


def _formula(table: mx.array, ids: mx.array, dtype: mx.Dtype) -> mx.array:
    return table[ids].astype(dtype)


def _in_one_kernel(table: mx.array, ids: mx.array, dtype: mx.Dtype) -> mx.array:
    @mx.custom_function
    def rows_of(table: mx.array) -> mx.array:
        return look_up_forward(table, ids, dtype)

    @rows_of.vjp
    def add_rows(table: mx.array, cotangent: mx.array, _: object) -> mx.array:
        return mx.zeros_like(table).at[ids].add(cotangent.astype(mx.float32))

    return cast(mx.array, rows_of(table))


@remembered
def _kernel_is_faster(C: int, dtype: mx.Dtype) -> bool:
    if machine().backend == "cpu":
        return False
    table = mx.random.normal((_TABLE, C), key=mx.random.key(0))
    ids = mx.random.randint(0, _TABLE, (_IDS,), key=mx.random.key(1))
    mx.eval(table, ids)

    def example(way: Callable[..., mx.array]) -> Callable[[], Sequence[mx.array]]:
        return lambda: [way(table, ids, dtype)]

    chosen = fastest(
        f"rows of {C} channels from a table, {dtype}",
        {"formula": example(_formula), "kernel": example(_in_one_kernel)},
        version=LOOKUP.revision,
    )
    return chosen == "kernel"
