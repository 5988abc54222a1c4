"""Parts of a computation at the same time on CPUs, on a stream of MLX each.

MLX runs the operations of a stream one after another, and only matrix products on several threads.
Two streams whose products have one thread each keep two cores busy with everything. Streams take
turns only if the graph is walked in its breadth, which `mlxchat.blas` sets before MLX starts.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mlxchat import openblas
from mlxchat.runtime import machine, mx

STREAMS = 2  # each more would hold one more set of gradients

_Result = TypeVar("_Result")
_own = threading.local()  # MLX's streams belong to a thread


def streams(count: int) -> Sequence[mx.Stream]:
    """Return this thread's default stream of the CPU and as many others as make up ``count``."""
    if not hasattr(_own, "streams"):
        _own.streams = [mx.default_stream(mx.cpu)]
    while len(_own.streams) < count:
        _own.streams.append(mx.new_stream(mx.cpu))
    found: list[mx.Stream] = _own.streams[:count]
    return found


def in_parts(parts: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Return the result of each function, whose operations go to a CPU stream of its own.

    On other backends they stay on the default stream.
    """
    if len(parts) == 1 or machine().backend != "cpu":
        return [part() for part in parts]
    results = []
    for stream, part in zip(streams(len(parts)), parts, strict=True):
        with mx.stream(stream):
            results.append(part())
    return results


@contextmanager
def one_thread_each(count: int) -> Iterator[None]:
    """Give products a single thread, for work on ``count`` streams, and wait for that at the end.

    With one stream nothing changes. It can decorate a function.
    """
    if count == 1 or machine().backend != "cpu":
        yield
        return
    threads = openblas.threads()
    openblas.set_threads(1)
    try:
        yield
    finally:
        for stream in streams(count):
            mx.synchronize(stream)
        openblas.set_threads(threads)
