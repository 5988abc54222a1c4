"""Ranks that are threads of one process: they exchange numbers and texts, but no arrays."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mlxchat.train.world import World

LONGEST = 20.0  # seconds that one waits for the others

Result = TypeVar("Result")


class ThreadWorld(World):
    """One of several ranks, which share a list and a barrier."""

    def __init__(self, rank: int, given: list[Any], barrier: threading.Barrier) -> None:
        super().__init__()
        self.rank, self.size = rank, len(given)
        self._given, self._barrier = given, barrier

    def all_gather(self, numbers: Sequence[float]) -> npt.NDArray[np.float64]:
        return np.array(self._exchanged([float(number) for number in numbers]), np.float64)

    def all_gather_texts(self, text: str) -> list[str]:
        return self._exchanged(text)

    def _exchanged(self, own: Any) -> list[Any]:
        self._given[self.rank] = own
        self._barrier.wait(LONGEST)
        of_all = list(self._given)
        self._barrier.wait(LONGEST)
        return of_all


def in_threads(ranks: int, work: Callable[[ThreadWorld], Result]) -> list[Result]:
    """Have so many ranks do the same work, and return what each returns."""
    given, barrier = [None] * ranks, threading.Barrier(ranks)

    def alone(rank: int) -> Result:
        try:
            return work(ThreadWorld(rank, given, barrier))
        except BaseException:
            barrier.abort()  # the others do not wait for it
            raise

    with ThreadPoolExecutor(ranks) as threads:
        return [future.result() for future in [threads.submit(alone, n) for n in range(ranks)]]
