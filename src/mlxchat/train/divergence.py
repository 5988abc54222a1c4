"""Numbers that are none: a run whose loss is NaN or infinite ends, and loses nothing that was good.

What is saved is looked at before, so that the newest checkpoint is always one to go on from.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from mlxchat.checkpoint import store
from mlxchat.data.documents import Cursor
from mlxchat.errors import DivergedError, MlxchatError
from mlxchat.runtime import mx


class NotFiniteError(Exception):
    """A number that training goes on from is NaN or infinite.

    Args:
        what: which number, in words.
        step: the one that it came up in.
        cursor: up to where the data was read.
    """

    def __init__(self, what: str, step: int, cursor: Cursor) -> None:
        super().__init__(f"{what} in step {step}")
        self.what, self.step, self.cursor = what, step, cursor


def check_numbers(numbers: Mapping[str, float], step: int, cursor: Cursor) -> None:
    """Raise `NotFiniteError` where one of a step's numbers, by name, is not finite."""
    for name, number in numbers.items():
        if not isfinite(number):
            raise NotFiniteError(f"The {name} is {number}", step, cursor)


def check_arrays(arrays: Mapping[str, mx.array], step: int, cursor: Cursor) -> None:
    """Raise `NotFiniteError` where one of the arrays to save, by name, is not finite throughout."""
    for name, array in arrays.items():  # one after another: little memory beside them
        if not mx.isfinite(array).all().item():
            raise NotFiniteError(f"{name} has numbers that are not finite", step, cursor)


def ended(error: NotFiniteError, run: Path, files: Sequence[str]) -> MlxchatError:
    """What to tell the user; the newest saved step is set aside, or it is told why it cannot be.

    Args:
        error: what happened.
        run: the run's folder.
        files: the dataset's, its training shards first; none where it is made up.
    """
    epoch, shard, row = error.cursor
    file = f"{files[shard]}, " if files else ""
    problem = (
        f"{error.what} in step {error.step:,}, with the data read up to epoch {epoch}, {file}row "
        f"{row:,}."
    )
    smaller = "with smaller learning rates under another `model_tag`"
    try:
        newest = store.latest(run)
        kept = store.keep_aside(run, store.steps(run)[-1]) if newest else None
    except MlxchatError as failure:
        return DivergedError(
            f"{problem} The newest good step could not be set aside: {failure.problem}",
            f"{failure.remedy} If it comes to this again, train {smaller}.",
        )
    if newest is None:
        return DivergedError(
            problem,
            f"Nothing was saved before. Begin again {smaller}, and save more often: `save_every`.",
        )
    return DivergedError(
        problem,
        f"The newest good step is {newest}, and stays in {kept} too. The same command goes on from "
        f"it; if it comes to this again, train {smaller}.",
    )
