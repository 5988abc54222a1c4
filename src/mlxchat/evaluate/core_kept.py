"""Verdicts on CORE's examples, and the file that stores them so that evaluations can resume."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlxchat.checkpoint.evaluation_files import VERDICTS
from mlxchat.checkpoint.files import entries
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.disk import open_regular, storing
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
    with open_regular(path) as file:
        for line in file:
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


def kept_stem(
    folder: Path,
    name: str,
    saved: SavedModel,
    bundle: Bundle,
    max_per_task: int | None,
    model: str | None = None,
) -> Path:
    """Return the path of an evaluation's files, without suffix, in the folder of evaluations.

    Files that an evaluation of the same weights has left get this name, so that it resumes, if they
    do not name a model, as in earlier versions, or name another one.

    Args:
        folder: the folder of evaluations.
        name, saved, bundle, max_per_task: as for `core_stem`.
        model: the `model_digest` of the directory that the model is in; None for a model in memory
            that is in none.

    Raises:
        LockedError: another process evaluates the same.
        DiskError: files cannot be renamed.
    """
    stem = core_stem(name, saved, bundle, max_per_task)
    wanted = f"{stem}_of_{model or stem[-8:]}"  # the latter is no directory's
    with storing(folder):
        files = [(match[1], path) for path in entries(folder) if (match := _parts(stem, path))]
        found = sorted({found for found, path in files if path.suffix == VERDICTS})
        if wanted in found or not found:
            return folder / wanted
        if model is None:  # these weights are in a directory after all
            return folder / found[0]
        lock = Lock.take(folder / f"{found[0]}{VERDICTS}")
        if lock is None:
            raise _evaluated_elsewhere(folder / f"{found[0]}{VERDICTS}")
        with lock:
            for had, path in files:
                if had == found[0]:
                    path.rename(path.with_name(wanted + path.name.removeprefix(had)))
    return folder / wanted


def _parts(stem: str, path: Path) -> re.Match[str] | None:
    """Return a match of a file's name with those of an evaluation, whatever model it names."""
    pattern = rf"({re.escape(stem)}(?:_of_[0-9a-f]{{8}})?)(?:_[0-9]+_tasks)?\.(?:jsonl|csv)"
    return re.fullmatch(pattern, path.name)


def core_stem(name: str, saved: SavedModel, bundle: Bundle, max_per_task: int | None) -> str:
    """Return the beginning of the names of an evaluation's files: another one for other weights.

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
