"""Rows of different lengths computed together: those of about one length, padded on the right.

What follows a row changes nothing in it, because attention looks back only.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

AT_ONCE = 8192  # tokens, padding included


def by_length(lengths: Sequence[int], rows: int | None = None) -> Iterator[list[int]]:
    """The indices of all rows, in groups of rows to compute together, short ones first.

    A group has `AT_ONCE` tokens at most, padding included, or is a single row.

    Args:
        lengths: of the rows, in tokens.
        rows: in a group at most.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        too_long = (len(group) + 1) * lengths[index] > AT_ONCE
        if group and (too_long or len(group) == rows):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def padded(rows: Sequence[Sequence[int]], value: int) -> npt.NDArray[np.int32]:
    """The rows one below the other, (B, T), with ``value`` after the shorter ones."""
    array = np.full((len(rows), max(map(len, rows))), value, np.int32)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array
