"""Stop a run whose loss or weights are NaN or infinite, keeping the last good checkpoint.

Arrays are checked before they are saved, so that the newest checkpoint can always be resumed.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from mlxchat.checkpoint import store
from mlxchat.data.documents import Cursor
from mlxchat.errors import DivergedError, MlxchatError
from mlxchat.runtime import mx


class NotFiniteError(Exception):
    """A number that training depends on is NaN or infinite.

    Args:
        what: which number is at fault, in words.
        step: the step in which it appeared.
        cursor: the position up to which the data had been read.
    """

    def __init__(self, what: str, step: int, cursor: Cursor) -> None:
        super().__init__(f"{what} in step {step}")
        self.what, self.step, self.cursor = what, step, cursor


def check_numbers(numbers: Mapping[str, float], step: int, cursor: Cursor) -> None:
    """Raise `NotFiniteError` if one of a step's numbers, given by name, is not finite."""
    for name, number in numbers.items():
        if not isfinite(number):
            raise NotFiniteError(f"The {name} is {number}", step, cursor)


def check_finite(arrays: Mapping[str, mx.array], step: int, cursor: Cursor) -> None:
    """Raise `NotFiniteError` if one of the arrays to save has an element that is not finite."""
    for name, array in arrays.items():  # one at a time, which takes little memory
        if not mx.isfinite(array).all().item():
            raise NotFiniteError(f"{name} has numbers that are not finite", step, cursor)


def diverged(error: NotFiniteError, run: Path, files: Sequence[str]) -> MlxchatError:
    """Set the newest checkpoint aside and return the error to raise, which names it.

    Args:
        error: the number that is not finite.
        run: the run's folder.
        files: the names of the dataset's files, training shards first; empty for generated data.
    """
    epoch, shard, row = error.cursor
    file = f"{files[shard]}, " if files else ""
    problem = (
        f"{error.what} in step {error.step:,}, with the data read up to epoch {epoch}, {file}row "
        f"{row:,} in the epoch's order."
    )
    smaller = "with smaller learning rates and another `model_tag`"
    try:
        newest = store.latest(run)
        kept = store.keep_aside(run, store.steps(run)[-1]) if newest else None
    except MlxchatError as failure:
        return DivergedError(
            f"{problem} The newest good checkpoint could not be copied: {failure.problem}",
            f"{failure.remedy} If the run diverges again, train {smaller}.",
        )
    if newest is None:
        return DivergedError(
            problem,
            f"No earlier checkpoint was saved. Start again {smaller}, and save more often with "
            "`save_every`.",
        )
    return DivergedError(
        problem,
        f"The newest good checkpoint is {newest}; a copy of it stays in {kept}. Repeat the "
        f"command to resume from it. If the run diverges again, train {smaller}.",
    )
