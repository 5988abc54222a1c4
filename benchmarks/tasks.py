"""How many questions a second of each task a model answers, and whether a random one only guesses.

    OPENBLAS_NUM_THREADS=1 python benchmarks/tasks.py FOLDER [--max-problems 500] [--json]

FOLDER is laid out as `mlxchat eval chat --task-data` wants it. The model is one of depth 4 with
random weights, all of them drawn from normal distributions so that no logit is like another, and a
tokenizer trained on the questions themselves; or a saved one with --checkpoint. A random model
prefers a letter or two, which not as many questions have for an answer: beside a uniform guess
(random) stands what its own letters get where they are dealt out anew (shuffled). It hardly ever
ends an answer: what GSM8K takes of it is --max-tokens for each.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rounds

from mlxchat import runtime
from mlxchat.checkpoint import layout
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.config.inference import TaskName
from mlxchat.counts import share_within
from mlxchat.evaluate.answers import Outcome, Score, answer_problems
from mlxchat.evaluate.tasks import Choice, Problem, problems
from mlxchat.model.config import GPTConfig
from mlxchat.model.gpt import GPT
from mlxchat.runtime import mx
from mlxchat.tokenizer import bpe

TASKS: tuple[TaskName, ...] = ("gsm8k", "arc-easy", "arc-challenge", "mmlu")
SEQUENCE_LEN = 2048
WARM_UP = 16  # problems that are not counted: the first ones compile


def random_model(depth: int, vocab_size: int, texts: Iterable[str], seed: int) -> SavedModel:
    """A model with `random_weights` and a tokenizer of those texts."""
    learnt = bpe.Tokenizer.train(texts, vocab_size)
    config = GPTConfig.from_depth(depth, learnt.vocab_size, SEQUENCE_LEN)
    model = GPT(config, runtime.machine().compute_dtype)
    return random_weights(SavedModel(model, learnt, conversational=True), seed)


def random_weights(saved: SavedModel, seed: int) -> SavedModel:
    """Every matrix normal with a variance of one over its inputs, as if it talked."""
    model = GPT(saved.model.config, saved.model.dtype)
    weights = sorted(model.named_parameters().items())
    keys = mx.random.split(mx.random.key(seed), len(weights))
    drawn = [
        (name, weight.shape[-1] ** -0.5 * mx.random.normal(weight.shape, key=key))
        for (name, weight), key in zip(weights, keys, strict=True)
    ]
    model.load_weights(drawn)
    return SavedModel(model, saved.tokenizer, saved.conversational)


def saved_model(folder: Path) -> SavedModel:
    """The model in a directory."""
    return layout.read_model(folder, runtime.machine().compute_dtype)


def solve(
    saved: SavedModel, task: str, asked: Sequence[Problem], batch_size: int, max_tokens: int
) -> dict[str, Any]:
    """A task's score and rate."""
    for _ in answer_problems(saved, asked[:WARM_UP], batch_size, max_tokens):
        pass
    begun = time.perf_counter()
    outcomes = list(answer_problems(saved, asked, batch_size, max_tokens))
    seconds = time.perf_counter() - begun
    score = Score.of(task, outcomes)
    return {
        **score.facts(),
        "shuffled": shuffled(outcomes),
        "seconds": seconds,
        "questions_per_second": len(asked) / seconds,
    }


def shuffled(outcomes: Sequence[Outcome]) -> float:
    """The share that is right on average where each answer goes to a question by chance."""
    given = Counter(outcome.answer for outcome in outcomes)
    expected = Counter(
        outcome.problem.answer for outcome in outcomes if isinstance(outcome.problem, Choice)
    )
    return sum(given[letter] * expected[letter] for letter in expected) / len(outcomes) ** 2


def report(found: Mapping[str, Any]) -> str:
    """What was measured, in Markdown."""
    rows = [
        {
            "task": task["task"],
            "questions": f"{task['problems']:,}",
            "questions/s": f"{task['questions_per_second']:,.1f}",
            "right": share_within(task["score"], (task["low"], task["high"])),
            "random": f"{task['random']:.1%}",
            "shuffled": f"{task['shuffled']:.1%}",
        }
        for task in found["tasks"]
    ]
    return (
        f"{found['model']}, {found['parameters']:,} parameters, vocabulary "
        f"{found['vocabulary']:,}; {found['settings']['batch_size']} answers of "
        f"{found['settings']['max_tokens']} tokens at most at a time; {found['device']}, load "
        f"{found['load']:.1f}; {rounds.listed('mlx')}.\n\n{rounds.table(rows)}"
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    every = {task: problems(task, given.folder, None) for task in given.tasks}
    if given.checkpoint:
        saved, model = saved_model(given.checkpoint), str(given.checkpoint)
    else:
        texts = [of.prompt.messages[0].text for of_task in every.values() for of in of_task]
        saved = random_model(given.depth, given.vocab_size, texts, given.seed)
        model = f"Classic d{given.depth} with random weights"
    saved.model.prepare_for_inference()
    tasks = [
        solve(saved, task, of_task[: given.max_problems], given.batch_size, given.max_tokens)
        for task, of_task in every.items()
    ]
    return {
        **rounds.circumstances(model, saved),
        "settings": {name: str(value) for name, value in vars(given).items()},
        "tasks": tasks,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the tasks' files")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--checkpoint", type=Path, help="a model's directory")
    parser.add_argument("--depth", type=int, default=4, help="of a random model")
    parser.add_argument("--vocab-size", type=int, default=4096, help="of a random model")
    parser.add_argument("--seed", type=int, default=0, help="of its weights")
    parser.add_argument("--max-problems", type=int, help="of each task; default: all")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given)
    print(json.dumps(found) if given.json else report(found))


if __name__ == "__main__":
    rounds.explain(main)
