"""Verdicts on CORE's examples, and the file that stores them so that evaluations can resume."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.disk import storing
from mlxchat.errors import LockedError
from mlxchat.evaluate.core_bundle import Bundle
from mlxchat.json_text import as_type, parse_json
from mlxchat.locks import Lock, in_use
from mlxchat.runtime import mx


class _Line(BaseModel):
    """A line of the file: a verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    index: int
    right: bool


_LINES: TypeAdapter[_Line] = TypeAdapter(_Line)


class Verdicts:
    """The verdicts on the examples of an evaluation, in memory.

    Attributes:
        right: whether each example is right, by task and number.
    """

    def __init__(self) -> None:
        self.right: dict[tuple[str, int], bool] = {}

    def add(self, task: str, index: int, right: bool) -> None:
        """Add a verdict."""
        self.right[task, index] = right


class KeptVerdicts(Verdicts):
    """Verdicts stored in a file, to which new ones are appended."""

    def __init__(self, file: TextIO, path: Path, right: dict[tuple[str, int], bool]) -> None:
        super().__init__()
        self.right = right
        self._file, self._path = file, path

    @classmethod
    @contextmanager
    def open(cls, path: Path, forget: Collection[str] = ()) -> "Iterator[KeptVerdicts]":
        """Open the file, which is created if it is missing.

        Args:
            path: the file.
            forget: the tasks whose verdicts in it are forgotten.

        Raises:
            LockedError: another process evaluates the same.
            DiskError: it cannot be read or written.
        """
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(path)
        if lock is None:
            raise _evaluated_elsewhere(path)
        with lock:
            with storing(path):
                before, end = read_verdicts(path)
                remaining = {key: right for key, right in before.items() if key[0] not in forget}
                anew = len(remaining) < len(before)
                if anew:
                    end = 0
                # Each line is handed to the system: the end of the process loses nothing.
                file = path.open("r+", buffering=1, encoding="utf-8")
                file.truncate(end)  # a line that a power cut left incomplete
                file.seek(end)
            with file:
                kept = cls(file, path, {} if anew else remaining)
                if anew:
                    for (task, index), right in remaining.items():
                        kept.add(task, index, right)
                yield kept

    def add(self, task: str, index: int, right: bool) -> None:
        """Add a verdict, to the file too."""
        super().add(task, index, right)
        line = json.dumps({"task": task, "index": index, "right": right})
        with storing(self._path):
            self._file.write(f"{line}\n")


def read_verdicts(path: Path) -> tuple[dict[tuple[str, int], bool], int]:
    """Return the verdicts in a file, and the number of bytes up to the first damaged line."""
    verdicts, end = {}, 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            kept = as_type(parse_json(line), _LINES)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        verdicts[kept.task, kept.index] = kept.right
        end += len(line)
    return verdicts, end


def _evaluated_elsewhere(path: Path) -> LockedError:
    return in_use(
        path, "Another process is evaluating the same model.", "Wait for it to finish, or stop it."
    )


def core_stem(name: str, saved: SavedModel, bundle: Bundle, max_per_task: int | None) -> str:
    """Return the name of an evaluation's files, without suffix: another one for another model.

    Args:
        name: the model's, and its step.
        saved: the model; its weights, precision and vocabulary count.
        bundle: has the examples.
        max_per_task: the most examples of each task; None for all.
    """
    digest = hashlib.sha256()
    for part in (bundle.checksum, str(max_per_task), str(saved.model.dtype)):
        digest.update(f"{part}\n".encode())
    for token in sorted(saved.tokenizer.ranks, key=saved.tokenizer.ranks.__getitem__):
        digest.update(b"%d " % len(token) + token)
    for parameter, array in sorted(saved.model.named_parameters().items()):
        digest.update(f"{parameter} {array.shape} {array.dtype}\n".encode())
        digest.update(np.array(array.reshape(-1).view(mx.uint8)).data)
    limit = "" if max_per_task is None else f"_{max_per_task}_per_task"
    return f"{name}{limit}_{digest.hexdigest()[:8]}"
