"""The rows of evaluation tasks, from parquet files as the hub lays them out.

A folder of task data holds ``<organisation>--<name>/<config>/<split>/*.parquet``.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlxchat.errors import MlxchatError

REASON_CHARACTERS = 200  # of what pyarrow says is wrong


def files(folder: Path) -> list[Path]:
    """The parquet files of a split's folder, in the order of their names; none where it is not."""
    return sorted(folder.glob("*.parquet"))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a split, file after file, each by the names of its columns.

    Raises:
        MlxchatError: the folder has no parquet file, or one is damaged.
    """
    paths = files(folder)
    if not paths:
        organisation, _, name = folder.parent.parent.name.partition("--")
        raise MlxchatError(
            f"There is no task data in {folder}.",
            f"Put the parquet files of {organisation}/{name}, config {folder.parent.name}, split "
            f"{folder.name} there; or name the folder of your task data with --task-data.",
        )
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:REASON_CHARACTERS]
            raise MlxchatError(
                f"{path} cannot be read: {reason}.", "It should be a whole parquet file."
            ) from error
    return rows
