"""CORE of a model: its score on each task, and their mean.

`evaluate_core` goes through the tasks and keeps the verdict on each example in a file, so that an
evaluation that was interrupted resumes where it was. The file belongs to one model, bundle and
limit.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import BaseEvalConfig
from mlxchat.disk import replacing, storing
from mlxchat.errors import LockedError
from mlxchat.evaluate.answers import Score, mean_centered
from mlxchat.evaluate.core_prompts import CoreExample, encode_examples
from mlxchat.evaluate.core_tasks import (
    CORE_TASKS,
    Bundle,
    CoreItem,
    core_items,
    core_labels,
    open_bundle,
)
from mlxchat.evaluate.core_verdicts import judge_examples, tokens_to_read
from mlxchat.home import Home
from mlxchat.json_text import as_type, parse_json
from mlxchat.locks import Lock, in_use
from mlxchat.runtime import mx
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Noted, Progressed, Report

CORE = "CORE"  # the task of the bar that counts the tokens of all tasks
SAMPLE = 16  # examples of a task that tell how long they are
JUDGED_AT_ONCE = 256  # examples that are encoded, then judged


@dataclass(frozen=True)
class CoreResult:
    """The scores of a model on tasks of CORE.

    Attributes:
        scores: a `Score` of each task, in the order of `CORE_TASKS`.
        max_per_task: the most examples of each; None for all.
    """

    scores: tuple[Score, ...]
    max_per_task: int | None

    @property
    def core(self) -> float:
        """The mean of the centered scores: CORE, if all 22 tasks are among them."""
        return mean_centered(self.scores)

    @property
    def error(self) -> float:
        """The standard error of that mean.

        The tasks count as independent. The two of hellaswag are not: they have the same questions.
        """
        errors = (centered_error(score) for score in self.scores)
        return math.sqrt(sum(error**2 for error in errors)) / len(self.scores)

    @property
    def has_all_tasks(self) -> bool:
        """Whether no task is missing."""
        return len(self.scores) == len(CORE_TASKS)

    def write_csv(self, path: Path) -> None:
        """Write the scores in the form of nanochat's scripts/base_eval.py.

        Raises:
            DiskError: the file cannot be written.
        """
        rows = [("Task", "Accuracy", "Centered")]
        rows += [(s.task, f"{s.share:.6f}", f"{s.centered:.6f}") for s in self.scores]
        rows.append((CORE, "", f"{self.core:.6f}"))
        text = "".join(
            f"{task:<35}, {share:<10}, {centered:<10}\n" for task, share, centered in rows
        )
        with storing(path), replacing(path) as partial:
            partial.write_text(text, "utf-8")


def centered_error(score: Score) -> float:
    """Return the standard error of a centered score."""
    return score.error / (1 - score.random)


def evaluate_run(
    name: str,
    saved: SavedModel,
    config: BaseEvalConfig,
    home: Home,
    report: Report,
    fresh: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[CoreResult, Path]:
    """Measure CORE as the settings say, resume it if it was interrupted, and write its scores.

    Args:
        name: the model's, and its step, for the names of files.
        saved: the model.
        config: the settings.
        home: where the verdicts and scores are kept, and the examples are by default.
        report: receives the progress.
        fresh: forget earlier verdicts.
        clock: stamps the events.

    Returns:
        The scores, and the path of their file.

    Raises:
        MlxchatError: there is no such task or bundle, another process evaluates the same, and so
            on, as the error messages say.
    """
    labels = core_labels(config.tasks)
    bundle = open_bundle(config.bundle, home.eval_bundle, report)
    stem = home.base_evaluations / core_stem(name, saved, bundle, config.max_per_task)
    with KeptVerdicts.open(stem.with_name(f"{stem.name}.jsonl"), fresh) as kept:
        result = evaluate_core(saved, bundle, labels, config.max_per_task, report, kept, clock)
    csv = stem.with_name(f"{stem.name}.csv")
    result.write_csv(csv)
    return result, csv


def evaluate_core(
    saved: SavedModel,
    bundle: Bundle,
    labels: Sequence[str],
    max_per_task: int | None,
    report: Report,
    kept: "KeptVerdicts",
    clock: Clock = SYSTEM_CLOCK,
) -> CoreResult:
    """Evaluate a model on tasks of CORE.

    Args:
        saved: the model.
        bundle: has the tasks' examples.
        labels: the tasks' labels.
        max_per_task: the most examples of each; None for all.
        report: receives the progress.
        kept: the verdicts so far; new ones are added.
        clock: stamps the events.

    Raises:
        MlxchatError: the examples of a task are missing or damaged, or too few; or a verdict cannot
            be kept.
    """
    contents = bundle.read(labels)
    items = {label: core_items(label, contents[label], max_per_task) for label in labels}
    missing = {
        label: [index for index in range(len(items[label])) if (label, index) not in kept.verdicts]
        for label in labels
    }
    total = sum(map(len, items.values()))
    if done := total - sum(map(len, missing.values())):
        report(Noted(clock(), f"{done:,} of {total:,} examples have been judged before."))
    progress = _Progress(saved, items, missing, report, clock)
    for label in labels:
        for example, right in _judged(saved, label, items[label], missing[label]):
            kept.add(label, example.index, right)
            progress.judged(label, example)
        progress.end(label)
    scores = [
        Score(
            label,
            problems=len(items[label]),
            right=sum(kept.verdicts[label, index] for index in range(len(items[label]))),
            random=CORE_TASKS[label].baseline / 100,
        )
        for label in labels
    ]
    return CoreResult(tuple(scores), max_per_task)


def _judged(
    saved: SavedModel, label: str, items: Sequence[CoreItem], indices: Sequence[int]
) -> Iterator[tuple[CoreExample, bool]]:
    """Yield examples of a task, each with whether the model is right.

    While the model reads some, the next ones are encoded.
    """
    task = CORE_TASKS[label]

    def encoded(piece: Sequence[int]) -> list[CoreExample]:
        return list(encode_examples(task, items, piece, saved.tokenizer))

    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        pieces = [
            indices[begin : begin + JUDGED_AT_ONCE]
            for begin in range(0, len(indices), JUDGED_AT_ONCE)
        ]
        following = [pool.submit(encoded, piece) for piece in pieces[:1]]
        for number in range(len(pieces)):
            examples = following.pop().result()
            following = [pool.submit(encoded, piece) for piece in pieces[number + 1 : number + 2]]
            by_index = {example.index: example for example in examples}
            for verdict in judge_examples(saved.model, examples, saved.tokenizer.bos):
                yield by_index[verdict.index], verdict.right


class _Progress:
    """Reports the examples of each task, and the tokens of all.

    Tasks differ in length by a factor of a hundred: only tokens tell how much time is left. Until a
    task has ended, a sample of its examples tells how many it has.
    """

    def __init__(
        self,
        saved: SavedModel,
        items: dict[str, list[CoreItem]],
        missing: dict[str, list[int]],
        report: Report,
        clock: Clock,
    ) -> None:
        self._report, self._clock = report, clock
        self._items = {label: len(of_task) for label, of_task in items.items()}
        self._judged = {label: self._items[label] - len(missing[label]) for label in items}
        self._tokens = dict.fromkeys(items, 0)
        self._n_layer = saved.model.config.n_layer
        self._expected: dict[str, int] = {}
        for label, indices in missing.items():
            sample = indices[:: max(1, len(indices) // SAMPLE)]
            encoded = encode_examples(CORE_TASKS[label], items[label], sample, saved.tokenizer)
            lengths = [tokens_to_read(example, self._n_layer) for example in encoded]
            self._expected[label] = round(sum(lengths) / max(1, len(sample)) * len(indices))

    def judged(self, label: str, example: CoreExample) -> None:
        """Count an example."""
        self._judged[label] += 1
        self._tokens[label] += tokens_to_read(example, self._n_layer)
        self._show(label)

    def end(self, label: str) -> None:
        """Count a task as complete."""
        self._expected[label] = self._tokens[label]
        self._show(label)

    def _show(self, label: str) -> None:
        now = self._clock()
        done, total = self._judged[label], self._items[label]
        self._report(Progressed(now, label, done, total, "examples"))
        expected = sum(max(self._expected[name], tokens) for name, tokens in self._tokens.items())
        self._report(Progressed(now, CORE, sum(self._tokens.values()), expected, "tokens"))


# ==== Verdicts on disk ====


class _Line(BaseModel):
    """A verdict in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    index: int
    right: bool


_LINES: TypeAdapter[_Line] = TypeAdapter(_Line)


class KeptVerdicts:
    """The verdicts on the examples of an evaluation, in a file to which new ones are added.

    Attributes:
        verdicts: whether each example is right, by task and number.
    """

    def __init__(self, file: TextIO, path: Path, verdicts: dict[tuple[str, int], bool]) -> None:
        self.verdicts = verdicts
        self._file, self._path = file, path

    @classmethod
    @contextmanager
    def open(cls, path: Path, fresh: bool = False) -> "Iterator[KeptVerdicts]":
        """Open the file, which is created if it is missing.

        Args:
            path: the file.
            fresh: forget the verdicts in it.

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
                verdicts, end = ({}, 0) if fresh else _read_verdicts(path)
                # Each line is handed to the system: the end of the process loses nothing.
                file = path.open("r+", buffering=1, encoding="utf-8")
                file.truncate(end)  # a line that a power cut left incomplete
                file.seek(end)
            with file:
                yield cls(file, path, verdicts)

    def add(self, task: str, index: int, right: bool) -> None:
        """Add a verdict."""
        self.verdicts[task, index] = right
        line = json.dumps({"task": task, "index": index, "right": right})
        with storing(self._path):
            self._file.write(f"{line}\n")


def _read_verdicts(path: Path) -> tuple[dict[tuple[str, int], bool], int]:
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
        path, "Another process evaluates the same model.", "Wait for it to end, or stop it."
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
