"""CORE, nanochat's benchmark for base models: a model's score on each task, and their mean.

`measure_core` evaluates the tasks during a run; `evaluate_run` does so for a saved model. The
latter keeps the verdict on each example in a file, so that an interrupted evaluation resumes where
it stopped. Each file belongs to one model, bundle and limit, as its name tells
(`mlxchat.checkpoint.evaluation_files`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import BaseEvalConfig
from mlxchat.counts import counted, ends_of
from mlxchat.disk import replacing, storing
from mlxchat.evaluate.answers import Score, mean_centered
from mlxchat.evaluate.core_batches import TOKENS_ONLY, BatchLimit, batch_limit, reading
from mlxchat.evaluate.core_bundle import open_bundle
from mlxchat.evaluate.core_examples import CoreExamples, read_items
from mlxchat.evaluate.core_kept import KeptVerdicts, Verdicts, kept_stem
from mlxchat.evaluate.core_prompts import CoreExample
from mlxchat.evaluate.core_tasks import CORE_TASKS, core_labels
from mlxchat.evaluate.core_verdicts import judge_examples
from mlxchat.home import Home
from mlxchat.model.gpt import GPT
from mlxchat.telemetry.clock import SYSTEM_CLOCK, Clock
from mlxchat.telemetry.events import Noted, Progressed, Report

CORE = "CORE"  # the task of the bar that counts the tokens of all tasks
SAMPLE = 16  # examples of a task that tell how long they are


@dataclass(frozen=True)
class CoreResult:
    """The scores of a model on tasks of CORE.

    Attributes:
        scores: a `Score` of each task, in the order of `CORE_TASKS`.
        max_per_task: the maximum number of examples per task; None for all.
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
    def ends(self) -> tuple[float, float]:
        """The ends of the 95% interval of that mean."""
        return ends_of(self.core, self.error)

    @property
    def has_all_tasks(self) -> bool:
        """Whether no task is missing."""
        return len(self.scores) == len(CORE_TASKS)

    def write_csv(self, path: Path) -> None:
        """Write the scores in the form of nanochat's scripts/base_eval.py; CORE if it is known.

        Raises:
            DiskError: the file cannot be written.
        """
        rows = [("Task", "Accuracy", "Centered")]
        rows += [(s.task, f"{s.share:.6f}", f"{s.centered:.6f}") for s in self.scores]
        if self.has_all_tasks:
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
    *,
    model: str | None = None,
) -> tuple[CoreResult, Path]:
    """Measure CORE as the settings say, resume it if it was interrupted, and write its scores.

    Args:
        name: the model's, and its step, for the names of files.
        saved: the model.
        config: the settings.
        home: where the verdicts and scores are kept, and the examples are by default.
        report: receives the progress.
        fresh: forget earlier verdicts on these tasks.
        clock: stamps the events.
        model: the `model_digest` of its directory; None if it is in none.

    Returns:
        The scores, and the path of their file.

    Raises:
        MlxchatError: there is no such task or bundle, another process evaluates the same, and so
            on, as the error messages say.
    """
    labels, limit = core_labels(config.tasks), batch_limit(saved.model, config.memory_limit)
    bundle = open_bundle(config.bundle, home.eval_bundle, report)
    folder = home.base_evaluations
    stem = kept_stem(folder, name, saved, bundle, config.max_per_task, model)
    items = read_items(bundle, labels, config.max_per_task)
    forget = labels if fresh else ()
    with KeptVerdicts.open(stem.with_name(f"{stem.name}.jsonl"), forget) as kept:
        total = sum(map(len, items.values()))
        if done := sum(
            (label, i) in kept.right for label in items for i in range(len(items[label]))
        ):
            report(
                Noted(
                    clock(), f"{done:,} of {counted(total, 'examples')} had already been evaluated."
                )
            )
        examples = CoreExamples(items, saved.tokenizer)
        for event in measure_core(saved.model, examples, kept, limit, clock):
            report(event)
        scores = core_scores(examples, kept)
    result = CoreResult(scores, config.max_per_task)
    of_tasks = "" if result.has_all_tasks else f"_{len(scores)}_tasks"  # beside those of all
    csv = stem.with_name(f"{stem.name}{of_tasks}.csv")
    result.write_csv(csv)
    return result, csv


def measure_core(
    model: GPT,
    examples: CoreExamples,
    verdicts: Verdicts,
    limit: BatchLimit = TOKENS_ONLY,
    clock: Clock = SYSTEM_CLOCK,
) -> Iterator[Progressed]:
    """Judge a model's answers to the examples of tasks; yields the progress.

    Args:
        model: the network.
        examples: all examples of the tasks.
        verdicts: those so far; new ones are added.
        limit: the most to compute at a time.
        clock: stamps the events.

    Raises:
        MlxchatError: an example cannot be encoded, or a verdict cannot be kept.
    """
    missing = {
        label: [index for index in range(len(items)) if (label, index) not in verdicts.right]
        for label, items in examples.items.items()
    }
    progress = _Progress(model.config.n_layer, examples, missing, clock)
    yield from progress.expect()
    padding = examples.tokenizer.bos
    for label, indices in missing.items():
        for batch in examples.batches(label, indices):
            by_index = {example.index: example for example in batch}
            for verdict in judge_examples(model, batch, padding, limit=limit):
                verdicts.add(label, verdict.index, verdict.right)
                yield from progress.judged(label, by_index[verdict.index])
        yield from progress.end(label)


def core_scores(examples: CoreExamples, verdicts: Verdicts) -> tuple[Score, ...]:
    """Return the score on each task, whose examples have all been judged."""
    return tuple(
        Score(
            label,
            problems=len(items),
            right=sum(verdicts.right[label, index] for index in range(len(items))),
            random=CORE_TASKS[label].baseline / 100,
        )
        for label, items in examples.items.items()
    )


class _Progress:
    """Reports progress: examples per task, and tokens overall.

    Tasks differ in length by a factor of a hundred, so only tokens show how much time is left.
    Until a task is finished, its tokens are estimated from a sample of its examples.
    """

    def __init__(
        self, n_layer: int, examples: CoreExamples, missing: dict[str, list[int]], clock: Clock
    ) -> None:
        self._n_layer, self._clock = n_layer, clock
        self._examples, self._missing = examples, missing
        self._items = {label: len(items) for label, items in examples.items.items()}
        self._judged = {label: self._items[label] - len(missing[label]) for label in missing}
        self._tokens = dict.fromkeys(missing, 0)
        self._expected: dict[str, int] = {}

    def expect(self) -> Iterator[Progressed]:
        """Encode a sample of each task."""
        for label, indices in self._missing.items():
            sample = indices[:: max(1, len(indices) // SAMPLE)]
            lengths = [self._length(each) for each in self._examples.encoded(label, sample)]
            self._expected[label] = round(sum(lengths) / max(1, len(sample)) * len(indices))
            if self._expected[label]:
                yield self._of_all()

    def judged(self, label: str, example: CoreExample) -> Iterator[Progressed]:
        """Count an example."""
        self._judged[label] += 1
        self._tokens[label] += self._length(example)
        yield from self._both(label)

    def end(self, label: str) -> Iterator[Progressed]:
        """Count a task as complete."""
        self._expected[label] = self._tokens[label]
        yield from self._both(label)

    def _length(self, example: CoreExample) -> int:
        return reading(example, self._n_layer).tokens

    def _both(self, label: str) -> Iterator[Progressed]:
        judged, items = self._judged[label], self._items[label]
        yield Progressed(self._clock(), label, judged, items, "examples")
        if any(self._missing.values()):  # else there is nothing to read
            yield self._of_all()

    def _of_all(self) -> Progressed:
        done, tokens = sum(self._tokens.values()), self._tokens
        expected = sum(max(self._expected.get(name, 0), tokens[name]) for name in tokens)
        return Progressed(self._clock(), CORE, done, expected, "tokens")
