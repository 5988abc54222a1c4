"""Ranks: the processes that train one run together, on one machine or several.

Every rank has the whole model and computes the gradients of its own rows, whose sums are the same
on all ranks. Rank 0 leads and the others follow (`mlxchat.train.ranks`). This module exchanges
numbers, texts and arrays between ranks through `mlx.core.distributed`; its launcher, or ours, sets
the environment variables that identify the ranks.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from mlxchat.config.ranks import ANOTHER_ENDED, RANK_PATIENCE, backend_of_ranks
from mlxchat.counts import counted
from mlxchat.errors import ConfigError, DeviceError, MlxchatError, reason_of
from mlxchat.model.gpt import Arrays
from mlxchat.runtime import mx

START_PATIENCE = 3600.0  # seconds: rank 0 may have a tokenizer to train before it sends anything
TICK = 0.5  # seconds at a time in which a rank counts how long it has waited

SUMMED_BYTES = 32 * 2**20  # summed at a time, so that copies of the gradients take little memory

COMPARED = 2**22  # words of an array at a time
WORD_TYPES = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}  # by the size of an array's numbers

GiveUp = Callable[[MlxchatError], None]
"""Ends the process with that error, called while the main thread hangs."""


class Act(IntEnum):
    """An announcement by rank 0 of the next action, in which every rank takes part."""

    RESOURCES = 0  # the ranks tell what they can spare
    MEASURE = 1  # steps of a plan that follows, as text, are timed
    BEGIN = 2  # the state of the run follows
    STEP = 3
    EVALUATE = 4
    PLAN = 5  # a changed plan follows, as text
    END = 6
    WAIT = 7  # rank 0 is busy, and alive


class RanksDifferError(Exception):
    """Two ranks have different weights. Not an `MlxchatError`, after which a run would save."""


class World:
    """The ranks of a run; by default a single one, for which exchanges cost nothing.

    Args:
        group: the ranks; None for this process alone.
        on_cpu: exchange on the CPU, where waiting does not trigger a GPU's watchdog.
        patience: seconds within which the other ranks must respond.
        give_up: called if they do not, or if this process hangs for another reason.
        sent_as: the data type in which matrices' gradients are sent; bfloat16 halves the traffic,
            with rounding.
    """

    def __init__(
        self,
        group: mx.distributed.Group | None = None,
        on_cpu: bool = True,
        patience: float = RANK_PATIENCE,
        give_up: GiveUp = lambda error: None,
        sent_as: mx.Dtype = mx.float32,
    ) -> None:
        self.give_up = give_up
        self._group, self._patience = group, patience
        self._stream = mx.cpu if on_cpu else None
        self.sent_as = sent_as
        self.rank = group.rank() if group else 0
        self.size = group.size() if group else 1
        self._waited = 0.0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides, saves and reports."""
        return self.rank == 0

    def rows(self, total: int, named: str = "rows", setting: str = "total_batch_size") -> slice:
        """Return which of a step's rows are this rank's.

        Args:
            total: the number of rows.
            named: what they are, for an error.
            setting: decides how many there are.

        Raises:
            ConfigError: they cannot be divided evenly.
        """
        if total % self.size:
            possible = [ranks for ranks in range(1, min(total, 64) + 1) if total % ranks == 0]
            whole = total // self.size * self.size
            near = [rows for rows in (whole, whole + self.size) if rows]
            raise ConfigError(
                f"The {counted(total, named)} of a step cannot be divided evenly among {self.size} "
                "ranks.",
                f"Use {_or(possible)} ranks, or a `{setting}` of {_or(near)} {named}.",
            )
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def announce(self, act: Act, number: int = 0) -> None:
        """Tell the other ranks what follows, with the number of a step; rank 0 does."""
        self.all_gather([act, number])

    def dismiss(self) -> None:
        """Tell the other ranks that nothing follows, so that they end."""
        self.announce(Act.END)

    def listen(self) -> tuple[Act, int]:
        """Wait for an announcement; the other ranks do."""
        act, number = self.all_gather([Act.END, 0])[0]
        return Act(int(act)), int(number)

    def all_gather(self, numbers: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return the numbers of all ranks, exactly, a row for each: (ranks, numbers)."""
        row = np.array([numbers], np.float64)
        if self._group is None:
            return row
        # As bytes: MLX has no float64 on GPUs.
        return self._gathered(row.view(np.uint8)).view(np.float64)

    def all_gather_texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, which may differ in length."""
        if self._group is None:
            return [text]
        data = np.frombuffer(text.encode(), np.uint8)
        lengths = [int(length) for length in self.all_gather([data.size])[:, 0]]
        row = np.zeros((1, max(lengths) + 1), np.uint8)
        row[0, : data.size] = data
        rows = self._gathered(row)
        return [each[:n].tobytes().decode() for each, n in zip(rows, lengths, strict=True)]

    def all_sum(self, arrays: Arrays, sent_as: mx.Dtype | None = None) -> Arrays:
        """Return the sums over the ranks of arrays that have the same names and shapes on all.

        Args:
            arrays: what is added up.
            sent_as: how matrices travel; None for as they are, as vectors and scalars always do.

        ``arrays`` is emptied on the way, so that their memory can be used again. What computes them
        has ended before anything is exchanged: nothing on a GPU waits for another machine.
        """
        if self._group is None:
            return arrays
        mx.eval(arrays)
        order = list(arrays)
        began, summed = time.perf_counter(), Arrays()
        for names in list(_pieces(arrays)):
            flat = mx.concatenate([arrays[name].reshape(-1) for name in names])
            sent = flat.astype(sent_as) if sent_as and _is_matrix(arrays[names[0]]) else flat
            mx.eval(sent)
            total = mx.distributed.all_sum(sent, group=self._group, stream=self._stream)
            self._evaluate(total)
            total = total.astype(flat.dtype)
            ends = np.cumsum([arrays[name].size for name in names])[:-1].tolist()
            for name, part in zip(names, mx.split(total, ends), strict=True):
                summed[name] = part.reshape(arrays.pop(name).shape)
        self._waited += time.perf_counter() - began
        return {name: summed[name] for name in order}

    def broadcast(self, arrays: Arrays) -> Arrays:
        """Return rank 0's arrays; the others pass arrays of the same names and shapes."""
        if self.leads:
            return self.all_sum(dict(arrays))
        return self.all_sum({name: mx.zeros_like(array) for name, array in arrays.items()})

    def require_equal(self, arrays: Arrays, step: int) -> None:
        """Check that all ranks have the same arrays, by a checksum of every bit.

        Raises:
            RanksDifferError: one has others.
        """
        if self._group is None:
            return
        sums = self.all_gather([_checksum(array) for array in arrays.values()])
        for name, column in zip(arrays, sums.T, strict=True):
            if others := [rank for rank, each in enumerate(column) if each != column[0]]:
                raise RanksDifferError(
                    f"At step {step:,}, {name} of rank {others[0]} differs from rank 0."
                )

    def seconds_waited(self) -> float | None:
        """Return the seconds spent on sums since the last call; None for a single rank."""
        waited, self._waited = self._waited, 0.0
        return None if self.alone else waited

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Wait for so many seconds within the context."""
        usual, self._patience = self._patience, seconds
        try:
            yield
        finally:
            self._patience = usual

    def _gathered(self, row: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the rows of all ranks, each (1, bytes) and of the same length."""
        gathered = mx.distributed.all_gather(mx.array(row), group=self._group, stream=self._stream)
        self._evaluate(gathered)
        return np.array(gathered)

    def _evaluate(self, array: mx.array) -> None:
        try:
            with watchdog(self._patience, self.give_up):
                mx.eval(array)
        except RuntimeError as error:
            raise lost(f"{ANOTHER_ENDED}: {reason_of(error)}.") from error


ALONE = World()


def connect(patience: float, give_up: GiveUp, sent_as: mx.Dtype = mx.float32) -> World:
    """Join the ranks that this process was launched with; one that was not is alone.

    Args:
        patience: seconds in which the other ranks must answer, always; if they do not start within
            that time, the process is ended by SIGALRM.
        give_up: see `World`; called in a thread of its own if they do not.
        sent_as: see `World`.

    Raises:
        DeviceError: they cannot be reached.
    """
    backend = backend_of_ranks()
    if backend is None:
        return World(give_up=give_up)
    try:
        # MLX lets no thread of Python's run meanwhile, so that `watchdog` would wait as well.
        signal.setitimer(signal.ITIMER_REAL, patience)
        group = mx.distributed.init(strict=True, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise lost(f"The ranks could not connect ({backend}): {reason_of(error)}.") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return World(group, backend != "nccl", patience, give_up, sent_as)


@contextmanager
def watchdog(patience: float, give_up: GiveUp) -> Iterator[None]:
    """Give up after ``patience``, from a thread: a main thread that hangs cannot be woken up.

    Time in which this process is stopped, by Ctrl-Z, counts as one `TICK` at most.
    """
    done = threading.Event()

    def watch() -> None:
        for _ in range(math.ceil(patience / TICK)):
            if done.wait(TICK):
                return
        give_up(lost(f"Another rank has not responded for {patience:.0f} s."))

    threading.Thread(target=watch, name="watching ranks", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def lost(problem: str) -> DeviceError:
    """Return the error for ranks that do not answer."""
    return DeviceError(
        problem,
        "Its own messages may say why. Everything saved is kept. Repeat the command to resume, "
        "with as many ranks as are available.",
    )


def _pieces(arrays: Arrays) -> Iterator[list[str]]:
    """Divide arrays among pieces of `SUMMED_BYTES`, or of one array; yields their names.

    The arrays of a piece have one dtype, and are matrices or none is.
    """

    def kind(array: mx.array) -> tuple[str, bool]:
        return str(array.dtype), _is_matrix(array)

    piece: list[str] = []
    held = 0
    for name, array in sorted(arrays.items(), key=lambda item: (kind(item[1]), item[0])):
        full = held + array.nbytes > SUMMED_BYTES
        if piece and (full or kind(array) != kind(arrays[piece[-1]])):
            yield piece
            piece, held = [], 0
        piece.append(name)
        held += array.nbytes
    if piece:
        yield piece


def _is_matrix(array: mx.array) -> bool:
    return array.ndim > 1


def _checksum(array: mx.array) -> float:
    """Return the sum of an array's words, each times an odd number of its place, modulo 2^32."""
    words = mx.view(array.reshape(-1), WORD_TYPES[array.itemsize])
    places = mx.arange(min(COMPARED, words.size), dtype=mx.uint32)
    odd = places * 2 + 1  # so that two words that are exchanged are noticed
    total = mx.array(0, mx.uint32)
    for first in range(0, words.size, COMPARED):
        piece = words[first : first + COMPARED].astype(mx.uint32)
        total = total * 3 + (piece * odd[: piece.size]).sum()
        mx.eval(total)  # no more than one piece is held at a time
    return float(np.array(total))


def _or(numbers: Sequence[int]) -> str:
    *most, last = [str(number) for number in numbers]
    return f"{', '.join(most)} or {last}" if most else last
