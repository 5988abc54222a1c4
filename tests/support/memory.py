"""Measures the memory that MLX holds for one test."""

import gc

from mlxchat.runtime import mx


def memory_held() -> int:
    """Return the bytes that MLX holds now, and let its peak begin here.

    What other tests left in reference cycles is freed first. If the collector freed it later, in
    the middle of a measurement, that much would be missing from the figure.
    """
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    return int(mx.get_active_memory())
