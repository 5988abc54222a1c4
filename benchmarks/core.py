"""How many examples of CORE a second a model judges, beside one at a time as nanochat does.

    python benchmarks/core.py eval_bundle.zip --max-per-task 50
    python benchmarks/core.py eval_bundle.zip --max-per-task all --ways together --max-seconds 300
    python benchmarks/core.py eval_bundle.zip --ways alone together torch --depth 12 --json
    python benchmarks/core.py eval_bundle.zip --ways together --models FOLDER random

A way is ``together``, as `mlxchat eval base` does; ``alone``, with the same network what
nanochat/core_eval.py does: all rows of an example, padded to the longest, with the logits, the
losses and the likeliest token of every position; or ``torch``, the same with a network in torch
(classic models only; in bfloat16 on a GPU). All encode the prompts themselves. They take turns in
each task: the slow ones do its first half, then ``together`` all of it, then they the second half,
so that what else the machine does changes their ratio little. Beside the seconds that have passed
stand those of the processor, which other programs disturb less.

A model is the directory of a saved one, or of a run, whose newest step counts; or ``random``: with
random weights, all drawn from normal distributions, in the shape and with the tokenizer of the
saved one before it, or else of --depth and with a tokenizer trained on the tasks' own text.

With --json each task is a line as soon as it is done, and the sums of each way are the last lines:
what is cut short has not been in vain. With --max-seconds each task has a share of them by its
number of tokens, and as many examples as fit.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rounds
from tasks import random_model, random_weights, saved_model

from mlxchat.checkpoint import store
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.counts import score_within
from mlxchat.evaluate.answers import Score, padded
from mlxchat.evaluate.core import CoreResult
from mlxchat.evaluate.core_bundle import Bundle
from mlxchat.evaluate.core_examples import CoreExamples, read_items
from mlxchat.evaluate.core_prompts import CoreExample, encode_examples
from mlxchat.evaluate.core_tasks import CORE_TASKS, CoreItem
from mlxchat.evaluate.core_verdicts import judge_examples
from mlxchat.model.cpu import log_sum_exp
from mlxchat.runtime import mx

WARM_UP = 4  # examples of each task that are not counted: the first ones compile
SAMPLE = 8  # examples of a task that tell how long they are
LEARNT_FROM = 4_000_000  # characters, by the tokenizer of a random model
ALONE, TOGETHER, TORCH = "alone", "together", "torch"
RANDOM = "random"

Judge = Callable[[SavedModel, CoreExamples, str, Sequence[int]], Iterator[dict[int, bool]]]
"""Judges examples of a task, given its label and their numbers; yields which are right."""


def together(
    saved: SavedModel, examples: CoreExamples, label: str, indices: Sequence[int]
) -> Iterator[dict[int, bool]]:
    """As `mlxchat eval base` does."""
    for batch in examples.batches(label, indices):
        judged = judge_examples(saved.model, batch, saved.tokenizer.bos)
        yield {verdict.index: verdict.right for verdict in judged}


def alone(
    saved: SavedModel, examples: CoreExamples, label: str, indices: Sequence[int]
) -> Iterator[dict[int, bool]]:
    """As nanochat does."""
    for index in indices:
        yield {index: one_right(saved, *examples.encoded(label, [index]))}


def one_right(saved: SavedModel, example: CoreExample) -> bool:
    """Whether an example is right, from the logits of all positions."""
    rows = example.rows
    ids = mx.array(padded([row.ids for row in rows], saved.tokenizer.bos))  # (B, T)
    logits = saved.model(ids)  # (B, T, V)
    targets = mx.roll(ids, -1, axis=1)
    losses = log_sum_exp(logits) - mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    likeliest = logits.argmax(axis=-1)
    mx.eval(losses, likeliest)
    if example.gold is None:
        [row] = rows
        predicted = np.array(likeliest[0, row.start - 1 : row.end - 1]).tolist()
        return bool(predicted == list(row.ids[row.start : row.end]))
    of_row = np.array(losses)
    means = [float(of_row[n, row.start - 1 : row.end - 1].mean()) for n, row in enumerate(rows)]
    return means.index(min(means)) == example.gold


def in_torch(saved: SavedModel) -> Judge:
    """As nanochat does, in torch too, with the same weights."""
    rival = rounds.import_rival("torch_core")
    weights = {name: np.array(array) for name, array in saved.model.named_parameters().items()}
    judge = rival.Judge(saved.model.config, weights)

    def judged(
        saved: SavedModel, examples: CoreExamples, label: str, indices: Sequence[int]
    ) -> Iterator[dict[int, bool]]:
        for index in indices:
            yield {index: judge.is_right(*examples.encoded(label, [index]), saved.tokenizer.bos)}

    return judged


class Stint:
    """What a way has done of a task."""

    def __init__(self, judge: Callable[[Sequence[int]], Iterator[dict[int, bool]]]) -> None:
        self._judge = judge
        self.seconds = self.processor = 0.0
        self.right: dict[int, bool] = {}

    def warm_up(self, indices: Sequence[int]) -> None:
        """Judge a few examples that do not count."""
        for _ in self._judge(indices):
            pass

    def go_on(self, indices: Sequence[int], seconds: float) -> None:
        """Judge examples until the time is over, but some in any case."""
        begun, busy = time.perf_counter(), time.process_time()
        with closing(self._judge(indices)) as judged:
            for right in judged:
                self.right |= right
                if time.perf_counter() > begun + seconds:
                    break
        self.seconds += time.perf_counter() - begun
        self.processor += time.process_time() - busy


def measure_task(
    saved: SavedModel,
    label: str,
    items: Sequence[CoreItem],
    judges: dict[str, Judge],
    seconds: float,
) -> dict[str, Stint]:
    """Each way's stint at a task, of so many seconds at most."""
    examples = CoreExamples({label: items}, saved.tokenizer)
    stints = {way: Stint(partial(judge, saved, examples, label)) for way, judge in judges.items()}
    for stint in stints.values():
        stint.warm_up(range(min(WARM_UP, len(items))))
    slow = [stint for way, stint in stints.items() if way != TOGETHER]
    middle = (len(items) + 1) // 2 if TOGETHER in stints else len(items)
    for stint in slow:
        stint.go_on(range(middle), seconds / 2)
    if TOGETHER in stints:
        stints[TOGETHER].go_on(range(len(items)), seconds)
    for stint in slow:
        stint.go_on(range(middle, len(items)), seconds / 2)
    return stints


def shares(saved: SavedModel, items: dict[str, list[CoreItem]]) -> dict[str, float]:
    """Each task's share of all tokens, by a sample."""
    tokens = {}
    for label, of_task in items.items():
        sample = range(min(SAMPLE, len(of_task)))
        examples = encode_examples(CORE_TASKS[label], of_task, sample, saved.tokenizer)
        lengths = [sum(len(row.ids) for row in example.rows) for example in examples]
        tokens[label] = sum(lengths) / len(lengths) * len(of_task)
    return {label: count / sum(tokens.values()) for label, count in tokens.items()}


def measure_model(
    name: str,
    saved: SavedModel,
    items: dict[str, list[CoreItem]],
    given: argparse.Namespace,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Show each task, then the sums of each way, then in how many verdicts two ways differ."""
    show(rounds.circumstances(name, saved))
    makers = {ALONE: lambda _: alone, TOGETHER: lambda _: together, TORCH: in_torch}
    judges = {way: makers[way](saved) for way in given.ways}
    done: dict[str, dict[str, Stint]] = {}
    for label, share in shares(saved, items).items():
        print(f"{name}: {label}", file=sys.stderr, flush=True)
        done[label] = measure_task(saved, label, items[label], judges, share * given.max_seconds)
        for way, stint in done[label].items():
            show(
                {"model": name, "task": label, "way": way, "of": len(items[label]), **facts(stint)}
            )
    for way in given.ways:
        stints = {label: of_task[way] for label, of_task in done.items()}
        show({"model": name, "way": way, **summed(stints)})
    for way in given.ways[1:]:
        show({"model": name, **compared(given.ways[0], way, done)})


def facts(stint: Stint) -> dict[str, Any]:
    """A stint in numbers."""
    examples = len(stint.right)
    return {
        "examples": examples,
        "right": sum(stint.right.values()),
        "seconds": stint.seconds,
        "processor": stint.processor,
        "examples_per_second": examples / stint.seconds,
    }


def summed(stints: dict[str, Stint]) -> dict[str, Any]:
    """The sums of a way, and the CORE that its verdicts make, with its standard error."""
    scores = tuple(
        Score(label, len(stint.right), sum(stint.right.values()), CORE_TASKS[label].baseline / 100)
        for label, stint in stints.items()
    )
    result = CoreResult(scores, None)
    examples = sum(score.problems for score in scores)
    seconds = sum(stint.seconds for stint in stints.values())
    return {
        "tasks": len(stints),
        "examples": examples,
        "seconds": seconds,
        "processor": sum(stint.processor for stint in stints.values()),
        "examples_per_second": examples / seconds,
        "core": result.core,
        "error": result.error,
    }


def compared(one: str, other: str, done: dict[str, dict[str, Stint]]) -> dict[str, Any]:
    """How often two ways differ, and how much faster the second is, by examples per second."""
    both = differing = 0
    seconds = {one: 0.0, other: 0.0}
    for of_task in done.values():
        a, b = of_task[one].right, of_task[other].right
        common = a.keys() & b.keys()
        both += len(common)
        differing += sum(a[index] != b[index] for index in common)
        for way in seconds:  # as if each had judged those of both
            stint = of_task[way]
            seconds[way] += stint.seconds / len(stint.right) * len(common)
    return {
        "compared": [one, other],
        "examples": both,
        "verdicts_differ": differing,
        "times": seconds[one] / seconds[other],
    }


def models(
    given: argparse.Namespace, bundle: Bundle
) -> Iterable[tuple[str, Callable[[], SavedModel]]]:
    """Each model's name, and what reads or makes it."""
    before: Path | None = None
    for name in given.models:
        if name != RANDOM:
            before = store.latest(Path(name)) or Path(name)
            yield name, lambda path=before: saved_model(path)
        elif before:
            yield (
                f"{RANDOM}, like {before}",
                lambda path=before: random_weights(saved_model(path), given.seed),
            )
        else:
            yield f"{RANDOM} d{given.depth}", lambda: _random_of_depth(given, bundle)


def _random_of_depth(given: argparse.Namespace, bundle: Bundle) -> SavedModel:
    each = LEARNT_FROM // len(given.tasks)
    texts = [content.decode()[:each] for content in bundle.read(given.tasks).values()]
    return random_model(given.depth, given.vocab_size, texts, given.seed)


def table(lines: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    """What was measured of a model, in Markdown."""
    about, *rest = lines
    tasks = [line for line in rest if "task" in line]
    sums = [{**line, "task": "all"} for line in rest if "tasks" in line]
    rows = []
    for name in [*dict.fromkeys(line["task"] for line in tasks), "all"]:
        of_way = {line["way"]: line for line in [*tasks, *sums] if line["task"] == name}
        row = {"task": name, "examples": f"{of_way[ways[0]]['examples']:,}"}
        for way in ways:
            row[f"{way}, examples/s"] = f"{of_way[way]['examples_per_second']:.2f}"
        for way in ways[1:]:
            first, second = of_way[ways[0]], of_way[way]
            for key, head in (("seconds", "times"), ("processor", "processor")):
                each, other = (line[key] / line["examples"] for line in (first, second))
                row[f"{way}, {head}"] = f"{each / other:.2f}"
        rows.append(row)
    said = [
        f"CORE, {line['way']}: {score_within(line['core'], line['error'])} ({line['tasks']} tasks)"
        for line in sums
    ]
    said += [
        "{} of {:,} verdicts differ between {} and {}; {:.2f} times as fast.".format(
            line["verdicts_differ"], line["examples"], *line["compared"], line["times"]
        )
        for line in rest
        if "compared" in line
    ]
    head = (
        f"{about['model']}, {about['parameters']:,} parameters, vocabulary "
        f"{about['vocabulary']:,}; {about['device']}, load {about['load']:.1f}; "
        f"{rounds.listed('mlx')}."
    )
    return "\n\n".join([head, rounds.table(rows), *said])


def count_or_all(text: str) -> int | None:
    """The number of examples of a task, or None for all."""
    return None if text == "all" else rounds.positive(text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="nanochat's eval_bundle.zip")
    parser.add_argument("--tasks", nargs="+", choices=CORE_TASKS, default=list(CORE_TASKS))
    parser.add_argument("--max-per-task", type=count_or_all, default=50, help="a number, or all")
    parser.add_argument("--max-seconds", type=float, default=1e9, help="of each way and model")
    ways = [ALONE, TOGETHER, TORCH]
    parser.add_argument("--ways", nargs="+", choices=ways, default=[ALONE, TOGETHER])
    parser.add_argument("--models", nargs="+", default=[RANDOM], help=f"folders, or {RANDOM}")
    parser.add_argument("--depth", type=int, default=4, help="of a random model")
    parser.add_argument("--vocab-size", type=int, default=4096, help="of a random model")
    parser.add_argument("--seed", type=int, default=0, help="of its weights")
    parser.add_argument("--json", action="store_true", help="lines of JSON, as they come")
    given = parser.parse_args()
    bundle = Bundle(given.bundle)
    items = read_items(bundle, given.tasks, given.max_per_task)
    for name, make in models(given, bundle):
        lines: list[dict[str, Any]] = []
        show = _print_line if given.json else lines.append
        measure_model(name, make(), items, given, show)
        if not given.json:
            print(table(lines, given.ways))


def _print_line(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    rounds.explain(main)
