"""Tells the model in a directory from others, and finds the evaluations that are its own."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from mlxchat.checkpoint.adapters import ADAPTER_FILE
from mlxchat.checkpoint.bases import is_adapter, read_base_record
from mlxchat.checkpoint.evaluation_files import evaluation_file
from mlxchat.checkpoint.files import (
    CHECKSUMS,
    CONFIG,
    files_with_checksums,
    model_files,
    sha256_of,
    unreadable,
)
from mlxchat.checkpoint.stamp import saved_at
from mlxchat.tokenizer.bpe import TOKENIZER_FILE

ReportRead = Callable[[int, int], None]  # receives the bytes read so far, and all of them


def model_digest(folder: Path, report: ReportRead = lambda done, total: None) -> str:
    """Return what tells the model in a directory from others: of its files, and those below it.

    Args:
        folder: the directory.
        report: receives the progress, if it has no checksums and its files are read.

    Raises:
        MlxchatError: a file of the model cannot be read, or its list of checksums is damaged.
    """
    listed = files_with_checksums(folder) if (folder / CHECKSUMS).exists() else {}
    if is_adapter(folder):
        weights, below = [folder / ADAPTER_FILE], read_base_record(folder).weights
    else:
        weights, below = model_files(folder), {}
    described = [path for path in (folder / CONFIG, folder / TOKENIZER_FILE) if path.exists()]
    try:
        sums = _sums([*weights, *described], listed, report)
    except OSError as error:
        raise unreadable(folder, error) from error
    sums |= {f"below/{name}": own for name, own in below.items()}
    lines = [f"{own}  {name}\n" for name, own in sorted(sums.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:8]


def _sums(files: Sequence[Path], listed: dict[str, str], report: ReportRead) -> dict[str, str]:
    """Return the checksums of files by their names; those that are not listed are read."""
    unlisted = [path for path in files if path.name not in listed]
    total, before = sum(path.stat().st_size for path in unlisted), 0
    sums = {path.name: listed[path.name] for path in files if path.name in listed}
    for path in unlisted:
        sums[path.name] = sha256_of(path, partial(_pass_on, report, total, before))
        before += path.stat().st_size
    return sums


def _pass_on(report: ReportRead, total: int, before: int, done: int) -> None:
    report(before + done, total)


def own_evaluations(paths: Iterable[Path], folder: Path, step: int) -> list[Path]:
    """Return those of a run's evaluations that are of the model in a step's directory.

    Args:
        paths: the evaluations with the run's name.
        folder: the step's directory.
        step: the step.

    Raises:
        MlxchatError: a file of the model cannot be read, or its list of checksums is damaged.
    """
    files = [file for file in map(evaluation_file, paths) if file and file.step == step]
    try:
        digest = model_digest(folder) if any(file.model for file in files) else ""
        since = saved_at(folder, step) if any(file.model is None for file in files) else 0.0
    except OSError as error:
        raise unreadable(folder, error) from error
    return [
        file.path
        for file in files
        if (file.model == digest if file.model else _changed(file.path) >= since)
    ]


def _changed(path: Path) -> float:
    """Return when a file was written; before any time if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("-inf")
