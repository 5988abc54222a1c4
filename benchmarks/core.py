"""How many examples of CORE a second a model judges, beside one example at a time as in nanochat.

    python benchmarks/core.py eval_bundle.zip --max-per-task 50
    python benchmarks/core.py eval_bundle.zip --tasks arc_easy squad --depth 12

The model is one with random weights, all of them drawn from normal distributions, and a tokenizer
trained on the tasks' own text; or a saved one with --checkpoint. One at a time ("alone") is what
nanochat/core_eval.py does, with the same network: all rows of an example, padded to the longest,
with the logits, the losses and the likeliest token of every position. Both encode the prompts
themselves, and take turns task by task. Beside the seconds that have passed stand those of the
processor, which other programs on the machine disturb less.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rounds
from tasks import random_model, saved_model

from mlxchat.checkpoint.layout import SavedModel
from mlxchat.evaluate.answers import padded
from mlxchat.evaluate.core_prompts import CoreExample, encode_examples
from mlxchat.evaluate.core_tasks import CORE_TASKS, Bundle, CoreItem, core_items
from mlxchat.evaluate.core_verdicts import judge_examples
from mlxchat.model.cpu import log_sum_exp
from mlxchat.runtime import mx

WARM_UP = 4  # examples of each task that are not counted: the first ones compile
ALONE, TOGETHER = "alone", "together"

Judge = Callable[[SavedModel, str, Sequence[CoreItem], Sequence[int]], dict[int, bool]]
"""Judges examples of a task, given all of them and the numbers of those."""


def together(
    saved: SavedModel, label: str, items: Sequence[CoreItem], indices: Sequence[int]
) -> dict[int, bool]:
    """As `mlxchat eval base` does."""
    examples = list(encode_examples(CORE_TASKS[label], items, indices, saved.tokenizer))
    judged = judge_examples(saved.model, examples, saved.tokenizer.bos)
    return {verdict.index: verdict.right for verdict in judged}


def alone(
    saved: SavedModel, label: str, items: Sequence[CoreItem], indices: Sequence[int]
) -> dict[int, bool]:
    """As nanochat does."""
    right = {}
    for index in indices:
        [example] = encode_examples(CORE_TASKS[label], items, [index], saved.tokenizer)
        right[index] = one_right(saved, example)
    return right


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


WAYS: dict[str, Judge] = {ALONE: alone, TOGETHER: together}


def measure_task(
    saved: SavedModel, label: str, items: Sequence[CoreItem], ways: Sequence[str]
) -> dict[str, Any]:
    """A task's number of examples, and for each way the seconds and the verdicts."""
    found: dict[str, Any] = {"task": label, "examples": len(items)}
    for way in ways:
        print(f"{label}, {way}", file=sys.stderr, flush=True)
        WAYS[way](saved, label, items, range(min(WARM_UP, len(items))))
        begun, busy = time.perf_counter(), time.process_time()
        right = WAYS[way](saved, label, items, range(len(items)))
        found[way] = {
            "seconds": time.perf_counter() - begun,
            "processor": time.process_time() - busy,
            "right": [right[index] for index in range(len(items))],
        }
    return found


def report(found: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    tasks, ways = found["tasks"], found["settings"]["ways"]
    rows = [_row(task["task"], task["examples"], [task[way] for way in ways]) for task in tasks]
    summed = [
        {key: sum(task[way][key] for task in tasks) for key in ("seconds", "processor")}
        for way in ways
    ]
    rows.append(_row("all", sum(task["examples"] for task in tasks), summed))
    text = (
        f"{found['model']}, {found['parameters']:,} parameters, vocabulary "
        f"{found['vocabulary']:,}; {found['device']}, load {found['load']:.1f}; "
        f"{rounds.listed('mlx')}.\n\n{rounds.table(rows)}"
    )
    if len(ways) == 2:
        differing = sum(
            a != b
            for task in tasks
            for a, b in zip(*(task[way]["right"] for way in ways), strict=True)
        )
        text += f"\n\n{differing} verdicts differ."
    return text


def _row(task: str, examples: int, ways: Sequence[dict[str, Any]]) -> dict[str, str]:
    row = {"task": task, "examples": f"{examples:,}"}
    for name, way in zip((ALONE, TOGETHER), ways, strict=False):
        row[f"{name}, examples/s"] = f"{examples / way['seconds']:.2f}"
    if len(ways) == 2:
        one, many = ways
        row["times"] = f"{one['seconds'] / many['seconds']:.2f}"
        row["processor"] = f"{one['processor'] / many['processor']:.2f}"
    return row


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    contents = Bundle(given.bundle).read(given.tasks)
    items = {label: core_items(label, contents[label], given.max_per_task) for label in given.tasks}
    if given.checkpoint:
        saved, model = saved_model(given.checkpoint), str(given.checkpoint)
    else:
        texts = [text for content in contents.values() for text in content.decode().splitlines()]
        saved = random_model(given.depth, given.vocab_size, texts, given.seed)
        model = f"Classic d{given.depth} with random weights"
    return {
        **rounds.circumstances(model, saved),
        "settings": {**vars(given), "bundle": str(given.bundle)},
        "tasks": [measure_task(saved, label, items[label], given.ways) for label in given.tasks],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="nanochat's eval_bundle.zip")
    parser.add_argument("--tasks", nargs="+", choices=CORE_TASKS, default=list(CORE_TASKS))
    parser.add_argument("--max-per-task", type=rounds.positive, default=50)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[ALONE, TOGETHER])
    parser.add_argument("--checkpoint", type=Path, help="a model's directory")
    parser.add_argument("--depth", type=int, default=4, help="of a random model")
    parser.add_argument("--vocab-size", type=int, default=4096, help="of a random model")
    parser.add_argument("--seed", type=int, default=0, help="of its weights")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given)
    print(json.dumps(found, default=str) if given.json else report(found))


if __name__ == "__main__":
    rounds.explain(main)
